"""What a run counts for eyes since the server started. None of it is stored, and nothing that the run does reads it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field, replace

STEP_BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper bounds, in steps: of how far behind a draw was, and how late a loss came."""

REASONS = ("digest", "conflict", "step", "nonfinite", "values", "shape", "other")
"""Why a report was refused."""


@dataclass(slots=True)
class Steps:
    """A histogram of numbers of steps: `counts` one a bucket, the last for what is above them all."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(STEP_BUCKETS) + 1))
    total: int = 0

    def add(self, steps: int, times: int = 1) -> None:
        self.counts[bisect_left(STEP_BUCKETS, steps)] += times
        self.total += steps * times

    def copy(self) -> Steps:
        return Steps(list(self.counts), self.total)


@dataclass(slots=True)
class Tally:
    """Belongs to the run's thread."""

    batches: int = 0
    losses: int = 0
    nonfinite: int = 0
    duplicate: int = 0
    late: int = 0
    timed_out: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    staleness: Steps = field(default_factory=Steps)
    loss_age: Steps = field(default_factory=Steps)

    def copy(self) -> Tally:
        return replace(
            self,
            refused=Counter(self.refused),
            staleness=self.staleness.copy(),
            loss_age=self.loss_age.copy(),
        )
