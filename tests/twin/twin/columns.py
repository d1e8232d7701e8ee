"""Columns folded from reports, one number at a time, and the per-example history that they can be folded from again."""

from __future__ import annotations

import math

import numpy as np

NAN = float("nan")
STATISTICS = ("last", "mean", "ema", "count")


def rounded(value: float) -> float:
    """As a float32 holds it."""
    return float(np.float32(value))


def signal_of(column: str) -> str | None:
    """The signal of a derived column, such as `loss` of `mean_loss`; None for one that is uploaded."""
    statistic, _, signal = column.partition("_")
    return signal if signal and statistic in STATISTICS else None


def parts_of(column: str) -> list[str]:
    """What is kept for a column: a mean needs its count."""
    signal = signal_of(column)
    return [column, f"count_{signal}"] if column.startswith("mean_") and signal else [column]


def fold(columns: dict[str, list[float]], column: str, decay: float, example: int, value: float) -> None:
    """One finite value of one example."""
    statistic, _, signal = column.partition("_")
    known = columns[column][example]
    if statistic in ("mean", "count"):
        counts = columns[f"count_{signal}"]
        count = counts[example] = (0.0 if math.isnan(counts[example]) else counts[example]) + 1
    if statistic == "last":
        new = value
    elif statistic == "count":
        new = count
    elif math.isnan(known):
        new = value
    elif statistic == "mean":
        new = known + (value - known) / count
    else:
        new = decay * known + (1 - decay) * value
    columns[column][example] = rounded(new)


def folded_from(history: list[list[tuple[int, float]]], column: str, decay: float) -> dict[str, list[float]]:
    """A derived column and what belongs to it, from the losses kept of each example."""
    columns = {name: [NAN] * len(history) for name in parts_of(column)}
    if signal_of(column) == "loss":
        for example, entries in enumerate(history):
            for _, loss in entries:
                if math.isfinite(loss):
                    fold(columns, column, decay, example, loss)
    return columns
