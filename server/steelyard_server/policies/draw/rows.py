"""What a method that looks at all examples at once is given: the rows, and the moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steelyard_server.core import exact
from steelyard_server.core.random import Purpose, bits
from steelyard_server.policies.draw.contract import Float32s, Ids

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """All examples: `columns` are float32[size], NaN where nothing is known, not to be changed; `retired` is sorted."""

    size: int
    retired: Ids
    columns: Mapping[str, Float32s]

    def __getitem__(self, name: str) -> Float32s:
        return self.columns[name]

    @property
    def live(self) -> npt.NDArray[np.bool_]:
        """bool[size]: which may be drawn at all."""
        live = np.ones(self.size, np.bool_)
        live[self.retired] = False
        return live


@dataclass(frozen=True, slots=True)
class Moment:
    """When a choice is made: before the draw of `step`, for the `epoch`-th time. Lots are a function of both and the
    seed."""

    step: int
    epoch: int
    seed: int

    def uniform(self, count: int) -> Float64s:
        """float64[count] in (0, 1), each an odd multiple of 2^-53; the same numbers at each call."""
        words = bits(self.seed, Purpose.CHOICE, self.step).below(1 << 52, count)
        return (words.astype(np.float64) + 0.5) / float(1 << 52)

    def gumbel(self, count: int) -> Float64s:
        """float64[count] of the standard Gumbel law, from the same lots as `uniform`."""
        return -exact.log(-exact.log(self.uniform(count)))


def contains(ordered: Ids, ids: Ids) -> npt.NDArray[np.bool_]:
    """Which of `ids` stand in `ordered`, which is sorted: bool[m]. O(m · log)."""
    if not len(ordered):
        return np.zeros(len(ids), np.bool_)
    found = np.searchsorted(ordered, ids)
    return np.asarray(ordered[np.minimum(found, len(ordered) - 1)] == ids)


def unknown_share(column: Float32s, retired: Ids, most: int) -> float:
    """The share of the rows that are not retired whose number is NaN: of all of them, or of at most `most`, evenly
    spaced. NaN where there is none."""
    stride = max(1, -(-len(column) // most))
    unknown = np.isnan(column[::stride])
    live = len(unknown)
    if len(retired):
        gone = contains(retired, np.arange(0, len(column), stride))
        unknown &= ~gone
        live -= int(np.count_nonzero(gone))
    return int(np.count_nonzero(unknown)) / live if live else float("nan")
