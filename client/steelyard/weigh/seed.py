"""What the four rules of Dynamic Loss-Based Sample Reweighting (ICLR 2025) share: normalise, score, softmax.

With L_1..L_n the losses of the whole global batch, and d = delta:

    R   = max(L_max - L_min, min_range)
    h_i = d (2 L_i - L_max - L_min) / R             in [-d, d]
    f_i = the rule's own function of h_i
    w_i = n exp(f_i / r) / sum_j exp(f_j / r)

Each rule's file holds its f. The paper's weights sum to 1 and its objective is the sum of w_i L_i; here they
sum to n and the objective is the mean, which is the same number. The temperature r sets how far the weights
may part: the larger, the more uniform. The weights do not change when the losses are shifted or scaled, but
for `min_range`.

Source: the authors' public code (sowmaster/Sample-Level-Loss-Reweighting-ICLR-2025, src/trainer.py). Two
limits of the method: one outlier sets the range, so under label noise LinUpper and Upper favour the wrong
examples, unless `clip` cuts it off; and in a batch of nearly equal losses the range is noise, which the default
`min_range` of the paper (1e-6) lets through.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from steelyard.source import Source
from steelyard.weigh import checks
from steelyard.weigh.batch import opened, softmax
from steelyard.weigh.choice import clipped
from steelyard.weigh.rule import Array, Context, Reads, Rule

# Wide enough for any use, narrow enough that no intermediate value leaves the range of float32.
_R_LIMITS = (1e-6, 1e12)
_DELTA_LIMITS = (1e-6, 1e6)
_MIN_RANGE_LIMITS = (1e-30, 1e30)


PAPER = (
    "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining (Sow et al., 2025)"
)


def seed_source(strategy: str) -> Source:
    """Where one of the four stands in the authors' code."""
    return Source(PAPER, f"{strategy}; sowmaster/Sample-Level-Loss-Reweighting-ICLR-2025 src/trainer.py")


@dataclass(frozen=True)
class SeedRule(Rule):
    """Parameters and arithmetic of the four rules. ValueError: a parameter out of its range."""

    reads: ClassVar[Reads] = "losses"
    never_reported: ClassVar[str] = "Nothing is remembered: the losses of the batch alone decide."

    r: float = 1.0
    """Temperature of the softmax; the paper uses 0.4 to 1.0, and 100 for practically uniform."""
    delta: float = 1.0
    """The scale d that losses are normalised to."""
    warmup_steps: int = 0
    """Weights are 1 before this step."""
    min_range: float = 1e-6
    """The least range R, in units of the loss: a batch that spreads less is weighed more evenly."""
    r_schedule: tuple[tuple[int, float], ...] | None = None
    """(step, r) in ascending order: from each step on its r holds, before the first the field `r`."""
    clip: float | None = None
    """An extension: before all else, this part of the batch at either end takes the loss of the one next to it, so
    that outliers do not set the range. None: as published."""

    def __post_init__(self) -> None:
        fields = {
            "r": checks.number(f"{self.method}.r", self.r, *_R_LIMITS),
            "delta": checks.number(f"{self.method}.delta", self.delta, *_DELTA_LIMITS),
            "warmup_steps": checks.count(f"{self.method}.warmup_steps", self.warmup_steps),
            "min_range": checks.number(f"{self.method}.min_range", self.min_range, *_MIN_RANGE_LIMITS),
            "r_schedule": checks.schedule(f"{self.method}.r_schedule", self.r_schedule, *_R_LIMITS),
        }
        if self.clip is not None:
            fields["clip"] = checks.number(f"{self.method}.clip", self.clip, 0.0, 0.49)
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @abstractmethod
    def score(self, xp: Any, h: Array) -> Array:
        """f: the score of normalised losses h in [-delta, delta]; `xp` is their array namespace."""

    def temperature(self, step: int) -> float:
        """The r that holds at `step`."""
        held = [r for start, r in self.r_schedule or () if start <= step]
        return held[-1] if held else self.r

    def weights(self, losses: Array, context: Context) -> Array:
        """The weights of one global batch; see steelyard.weigh.rule."""
        batch = opened(losses, context)
        xp, losses = batch.xp, batch.losses
        if batch.empty:
            return losses
        if context.step < self.warmup_steps:
            return softmax(batch, xp.zeros_like(losses))
        if self.clip is not None:
            losses = clipped(batch, self.clip)
        scores = self.score(xp, _normalise(xp, losses, batch.valid, self.delta, self.min_range))
        return softmax(batch, scores / self.temperature(context.step))


def _normalise(xp: Any, losses: Array, valid: Array, delta: float, min_range: float) -> Array:
    """Normalised losses h of the valid positions; the others are given that of the lowest."""
    limit = xp.finfo(losses.dtype).max
    some = xp.any(valid)
    # Halves, so that neither the range nor a distance overflows whatever the losses are.
    low = xp.where(some, xp.min(xp.where(valid, losses, limit)), 0.0) * 0.5
    high = xp.where(some, xp.max(xp.where(valid, losses, -limit)), 0.0) * 0.5
    half = xp.where(valid, losses * 0.5, low)
    spread = high - low
    spread = xp.where(spread > 0.5 * min_range, spread, 0.5 * min_range)
    # Distances to both ends, not (2L - max - min): these differences are exact for losses that lie close
    # together.
    return ((half - low) - (high - half)) / spread * delta
