"""A step between its draw and its fold: what was served, and what has been reported of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from steelyard_server.core.events import BatchDrawn, Float32s, Ids


@dataclass(slots=True, eq=False)
class StepRecord:
    """`reported` is bool[B], of which `missing` are not set; each signal float32[B], NaN where it was not reported.

    For the weigh rule of the step: `columns` are the static ones that it reads, float32[B] as of the draw; `weights`
    float32[B] those that followed from its past, or `failure` why there are none.
    """

    drawn: BatchDrawn
    reported: npt.NDArray[np.bool_]
    signals: dict[str, Float32s] = field(default_factory=dict)
    closed: bool = False
    folded: bool = False
    columns: dict[str, Float32s] = field(default_factory=dict)
    weights: Float32s | None = None
    failure: str = ""
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.missing = len(self.reported) - int(np.count_nonzero(self.reported))

    @classmethod
    def of(cls, drawn: BatchDrawn) -> StepRecord:
        return cls(drawn, np.zeros(len(drawn.ids), np.bool_))

    @property
    def complete(self) -> bool:
        return not self.missing

    def is_news(self, offset: int, count: int) -> bool:
        """Whether none of these positions was reported."""
        if self.missing == len(self.reported):
            return True
        return not self.reported[offset : offset + count].any()

    def holds(self, offset: int, signals: Mapping[str, Float32s]) -> bool:
        """Whether these very signals are among what was reported."""
        stop = offset + len(next(iter(signals.values())))
        return bool(self.reported[offset:stop].all()) and not self.contradicts(offset, signals)

    def contradicts(self, offset: int, signals: Mapping[str, Float32s]) -> bool:
        """Whether a position that was reported has another value now. NaN equals NaN."""
        for name, values in signals.items():
            stop = offset + len(values)
            known = self.reported[offset:stop]
            if not known.any():
                continue
            if name not in self.signals:
                return True
            mine = self.signals[name][offset:stop]
            if not np.array_equal(mine[known], values[known], equal_nan=True):
                return True
        return False

    def take(self, offset: int, signals: Mapping[str, Float32s]) -> None:
        count = len(next(iter(signals.values())))
        at = slice(offset, offset + count)
        for name, values in signals.items():
            if count == len(self.reported):
                self.signals[name] = values.copy()
                continue
            if name not in self.signals:
                self.signals[name] = np.full(len(self.reported), np.nan, np.float32)
            self.signals[name][at] = values
        self.missing -= count - int(np.count_nonzero(self.reported[at]))
        self.reported[at] = True
        if not self.missing:
            self.closed = True


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """Signals of ids that were not drawn, waiting to be folded with the reports of `step`."""

    step: int
    ids: Ids
    signals: Mapping[str, Float32s]
