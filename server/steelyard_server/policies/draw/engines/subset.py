"""A subset for an epoch: chosen at its start, then each of it once (or so many times as it has copies), shuffled."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard_server.core.permutation import permute
from steelyard_server.policies.draw.contract import Examples, Float32s, Ids, LawSummary
from steelyard_server.policies.draw.engines.epochs import Epoch, EpochDraw, EpochDrawer
from steelyard_server.policies.draw.rows import Moment, Rows, contains

COPIES = "own:copies"
"""float32[size]: how many places an id takes in the running epoch; NaN where it was appended since, or was retired
already when it was chosen: nothing was decided on it."""
WEIGHT = "own:weight"

_MOST_COPIES = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A choice: `mask` bool[size]; `copies` int64[size], 1 each where it is None; `weight` float32[size], of methods
    that give one."""

    mask: npt.NDArray[np.bool_]
    copies: npt.NDArray[np.int64] | None = None
    weight: Float32s | None = None


class SubsetDraw(EpochDraw):
    """A draw of which a method says what each epoch keeps. Where that is nothing, all that are not retired are kept."""

    @abstractmethod
    def keep(self, rows: Rows, moment: Moment) -> Kept | None:
        """What the epoch keeps; `moment.epoch` counts the choices from 0. None: what the epoch before kept, and what
        was appended since, once and with weight 1.

        A function of its arguments alone. `rows[COPIES]` is the choice before, all NaN at the first.
        """

    @property
    def own(self) -> tuple[str, ...]:
        return (COPIES, WEIGHT) if self.gives_weights else (COPIES,)

    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> SubsetDrawer:
        return SubsetDrawer(self, examples, seed, batch_size, state)


class SubsetEpoch(Epoch):
    """The ids that have copies, in ascending order, each as often as it has; shuffled by a keyed permutation.

    Memory: 4 bytes a place, 8 from 2^32 ids on.
    """

    def __init__(self, examples: Examples, seed: int, *, weighs: bool) -> None:
        self._columns = examples.columns
        self._seed = seed
        self._weighs = weighs
        copies = self._columns[COPIES]
        ids = np.flatnonzero(copies > 0)
        self.distinct = len(ids)
        times = copies[ids].astype(np.int64)
        ids = ids.astype(np.uint32) if examples.size <= 1 << 32 else ids
        self._ids = ids if (times == 1).all() else np.repeat(ids, times)
        self.length = len(self._ids)

    def at(self, turn: int, start: int, stop: int) -> Ids:
        places = permute(np.arange(start, stop, dtype=np.uint64), self.length, self._seed, turn)
        return self._ids[places].astype(np.int64)

    def copies(self, ids: Ids) -> npt.NDArray[np.int64]:
        return np.nan_to_num(self._columns[COPIES][ids]).astype(np.int64)

    def weight(self, ids: Ids) -> Float32s | None:
        return self._columns[WEIGHT][ids] if self._weighs else None


class SubsetDrawer(EpochDrawer):
    """Draws the kept of each epoch."""

    def __init__(
        self,
        draw: SubsetDraw,
        examples: Examples,
        seed: int,
        batch_size: int,
        state: Mapping[str, Any] | None,
    ) -> None:
        self._draw = draw
        super().__init__(examples, seed, batch_size, state, weighs=draw.gives_weights)

    def effective_sample_ratio(self) -> float:
        if self._epoch is None:
            return 1.0
        copies = self._examples.columns[COPIES].astype(np.float64)
        copies[self._examples.retired] = 0
        copies = np.nan_to_num(copies)
        return float(copies.sum() ** 2 / max(self.drawable * (copies * copies).sum(), 1.0))

    def summary(self, most: int) -> LawSummary:
        if self._epoch is None:
            return super().summary(most)
        size, retired = self._examples.size, self._examples.retired
        at = np.arange(0, size, max(1, -(-size // most)))
        copies = np.nan_to_num(self._examples.columns[COPIES][at].astype(np.float64))
        copies[contains(retired, at)] = 0
        distinct, total = int(np.count_nonzero(copies)), float(copies.sum())
        if not distinct:
            return LawSummary(math.nan, math.nan, None)
        # As many are in the sample as stand for it among all.
        places = total * self.drawable / distinct
        ratio = total**2 / (distinct * float((copies * copies).sum()))
        return LawSummary(ratio, float(copies.max()) / places, None)

    def _choose(self, rows: Rows, moment: Moment) -> None:
        kept = self._draw.keep(rows, moment)
        before = rows[COPIES]
        if kept is None:
            copies = np.where(np.isnan(before), np.float32(1), before)
            weight = np.where(np.isnan(before), np.float32(1), rows[WEIGHT]) if self._weighs else None
        else:
            copies = _checked(kept, rows.size)
            weight = np.ones(rows.size, np.float32) if kept.weight is None else kept.weight
        live = rows.live
        copies = np.where(live, copies, np.float32(0 if kept is None else np.nan))
        if not (copies > 0).any():
            copies = np.where(live, np.float32(1), np.float32(np.nan))
            weight = np.ones(rows.size, np.float32)
        self._put(COPIES, copies)
        if self._weighs and weight is not None:
            self._put(WEIGHT, weight)

    def _put(self, name: str, values: Float32s) -> None:
        """Only what differs, so that little is saved where little did."""
        before = self._examples.columns[name]
        at = np.flatnonzero((values != before) & ~(np.isnan(values) & np.isnan(before)))
        self._examples.put(name, at, values[at])

    def _read(self) -> Epoch:
        return SubsetEpoch(self._examples, self._seed, weighs=self._weighs)


def _checked(kept: Kept, size: int) -> Float32s:
    if kept.mask.shape != (size,) or kept.mask.dtype != np.bool_:
        raise ValueError(f"expected a mask bool[{size}], got {kept.mask.dtype}{list(kept.mask.shape)}")
    if kept.copies is None:
        return kept.mask.astype(np.float32)
    copies = np.where(kept.mask, kept.copies, 0)
    if int(copies.max(initial=0)) > _MOST_COPIES or int(copies.min(initial=0)) < 0:
        raise ValueError(f"expected 0..{_MOST_COPIES} copies of each, got {copies.min()}..{copies.max()}")
    return copies.astype(np.float32)
