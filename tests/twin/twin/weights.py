"""The weigh rules by their formulas, in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

DEFAULTS: dict[str, dict[str, Any]] = {
    "uniform": {},
    **{
        name: {"r": 1.0, "delta": 1.0, "warmup_steps": 0, "min_range": 1e-6}
        for name in ("linupper", "quadratic", "extremes", "upper")
    },
    "importance": {"beta": 1.0, "normalise": "none"},
}
SCORES: Mapping[str, Callable[[float, float], float]] = {
    "linupper": lambda h, d: min(h + d, d),
    "quadratic": lambda h, d: 1 - h * h / (d * d),
    "extremes": lambda h, d: abs(h),
    "upper": lambda h, d: (h + d) / 2,
}


def reads_losses(weigh: Mapping[str, Any]) -> bool:
    return weigh["method"] in SCORES


def by_probability(
    weigh: Mapping[str, Any], probability: Sequence[float], examples: int, highest: float
) -> list[float]:
    """(1 / (N p))^beta, over the greatest of the batch, or that of `highest`, where the rule says so; 1 under other
    rules."""
    if weigh["method"] != "importance":
        return [1.0] * len(probability)
    plain = [(1 / (examples * p)) ** weigh["beta"] for p in probability]
    top = {"none": 1.0, "batch_max": max(plain), "run_max": highest ** weigh["beta"]}[weigh["normalise"]]
    return [one / top for one in plain]


def by_losses(weigh: Mapping[str, Any], losses: Sequence[float | None], step: int) -> list[float]:
    """n exp(f / r) / sum exp(f / r) over the finite losses; None is one that was not reported, which n leaves out."""
    reported = [loss for loss in losses if loss is not None]
    finite = [loss for loss in reported if math.isfinite(loss)]
    if not finite:
        return [0.0] * len(losses)
    low, high, delta = min(finite), max(finite), weigh["delta"]
    spread = max(high - low, weigh["min_range"])
    r = [weigh["r"], *(at for since, at in weigh.get("r_schedule", ()) if since <= step)][-1]

    def exponent(loss: float) -> float:
        if step < weigh["warmup_steps"]:
            return 0.0
        normalised = delta * (2 * loss - high - low) / spread
        return SCORES[weigh["method"]](normalised, delta) / float(r)

    top = max(map(exponent, finite))
    total = sum(math.exp(exponent(loss) - top) for loss in finite)
    return [
        0.0
        if loss is None or not math.isfinite(loss)
        else len(reported) * math.exp(exponent(loss) - top) / total
        for loss in losses
    ]
