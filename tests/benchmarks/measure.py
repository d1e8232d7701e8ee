"""Measuring on a machine that others use: what is compared is run in turns, and ratios are taken turn by turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure. `quick` takes tiny sizes: to see that everything runs, not for figures."""

    repeats: int
    quick: bool
    large: bool
    scratch: Path
    """An empty folder on a real disk."""
    huge: bool = False
    peers: Path | None = None
    """Where `make peers` installed them; None: measure without."""


@dataclass(frozen=True, slots=True)
class Series:
    """One number measured in every turn. `against` names the series of the same table that it is a ratio of."""

    name: str
    unit: str
    values: Sequence[float]
    against: str | None = None
    shown: bool = True
    """Whether it has a line in the text too; the JSON has it always."""


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    series: Sequence[Series]
    sizes: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()
    """What is not like for like, and what is absent."""

    def ratios(self, series: Series) -> list[float]:
        """The series over the one that it is held against, turn by turn; empty where it is held against none."""
        for other in self.series:
            if other.name == series.against != series.name:
                return [a / b for a, b in zip(series.values, other.values, strict=True) if b]
        return []


def in_turns(repeats: int, cases: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Runs every case once a turn, A B, B A, A B, ..., so that what drifts meets all of them alike."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats):
        names = list(cases) if turn % 2 == 0 else list(cases)[::-1]
        for name in names:
            found[name].append(cases[name]())
    return found


def seconds_a_call(action: Callable[[], object], *, least: float = 0.02, most: int = 10_000) -> float:
    """Mean seconds of one call over `least` seconds of calls, after one that warms up; `most` calls at most."""
    action()
    calls, start = 0, time.perf_counter()
    while True:
        action()
        calls += 1
        took = time.perf_counter() - start
        if took >= least or calls >= most:
            return took / calls


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def text_of(table: Table) -> str:
    """The table for eyes: median, least and greatest of each series, and of its ratios."""
    sizes = ", ".join(f"{name} {value}" for name, value in table.sizes.items())
    lines = [f"{table.title}   ({sizes})" if sizes else table.title]
    shown = [series for series in table.series if series.shown]
    width = max(len(series.name) for series in shown)
    for series in shown:
        ratios = table.ratios(series)
        ratio = f"   {_spread(ratios)} x {series.against}" if ratios else ""
        lines.append(
            f"  {series.name:<{width}}  {_spread(series.values):>30} {series.unit:<7}{ratio}".rstrip()
        )
    return "\n".join([*lines, *(f"  * {note}" for note in table.notes)])


def json_of(table: Table) -> dict[str, object]:
    return {
        "title": table.title,
        "sizes": {name: str(value) for name, value in table.sizes.items()},
        "series": [
            {
                "name": series.name,
                "unit": series.unit,
                "values": list(series.values),
                "median": statistics.median(series.values),
                "least": min(series.values),
                "greatest": max(series.values),
                "against": series.against,
                "ratios": table.ratios(series),
            }
            for series in table.series
        ],
        "notes": list(table.notes),
    }


def _spread(values: Sequence[float]) -> str:
    middle = _short(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} [{_short(min(values))}..{_short(max(values))}]"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
