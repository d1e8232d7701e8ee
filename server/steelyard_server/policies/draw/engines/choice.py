"""What methods that keep a part of the data have in common: ranks, shares, classes, and when a choice stands."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steelyard_server.policies.draw.contract import Float32s, Ids
from steelyard_server.policies.draw.engines.epochs import Float64s
from steelyard_server.policies.draw.engines.subset import COPIES, Kept, SubsetDraw
from steelyard_server.policies.draw.rows import Moment, Rows

Share = Annotated[float, Field(gt=0, le=1)]
Bools = npt.NDArray[np.bool_]


class JudgedDraw(SubsetDraw):
    """Goes through all examples for `after_epochs` epochs, and then through those that the method chose.

    A choice by reported signals is made once: whoever is left out is not reported any more. It stands as soon as it
    leaves anything out; ids appended later are drawn with the rest. A choice by static columns alone is made anew at
    each epoch from the columns as they then are, with the same lots, so that appended ids are judged like all others.
    """

    @property
    def epochs_before(self) -> int:
        """How many epochs of all examples come first."""
        return 0

    @abstractmethod
    def judge(self, rows: Rows, moment: Moment) -> Kept:
        """The choice; `moment` is the run's, the same at each epoch."""

    def keep(self, rows: Rows, moment: Moment) -> Kept | None:
        if moment.epoch < self.epochs_before:
            return everything(rows)
        # Also when all of those are retired by now.
        if self.reads_reports and ((rows[COPIES] != 1) & ~np.isnan(rows[COPIES])).any():
            return None
        return self.judge(rows, of_run(moment))


def everything(rows: Rows) -> Kept:
    return Kept(np.ones(rows.size, np.bool_))


def of_run(moment: Moment) -> Moment:
    """The moment whose lots are the run's: the same at each call."""
    return Moment(0, 0, moment.seed)


def least(scores: Float32s | Float64s, among: Bools, k: int, moment: Moment) -> Bools:
    """The k least of the examples `among` that have a score, all where they are fewer: bool[size]. Equal scores are cut
    by lots, the same for every k, so that less is always a part of more. O(size)."""
    ids = np.flatnonzero(among & ~np.isnan(scores))
    if k <= 0 or k >= len(ids):
        return mask_of(ids if k > 0 else ids[:0], len(scores))
    values = scores[ids]
    edge = np.partition(values, k - 1)[k - 1]
    tied, taken = ids[values == edge], ids[values < edge]
    missing = k - len(taken)
    if missing < len(tied):
        tied = tied[np.argsort(moment.uniform(len(scores))[tied], kind="stable")[:missing]]
    return mask_of(np.concatenate([taken, tied]), len(scores))


def greatest(scores: Float32s | Float64s, among: Bools, k: int, moment: Moment) -> Bools:
    """As `least`, from the other end."""
    return least(-scores, among, k, moment)


def scored(scores: Float32s | Float64s, among: Bools) -> int:
    """How many of `among` have a score."""
    return int(np.count_nonzero(among & ~np.isnan(scores)))


def ascending(scores: Float32s | Float64s, among: Bools, moment: Moment) -> Ids:
    """Those of the examples `among` that have a score, by it, int64[m]; equal scores in a random order."""
    ids = np.flatnonzero(among & ~np.isnan(scores))
    ids = ids[np.argsort(moment.uniform(len(scores))[ids], kind="stable")]
    return ids[np.argsort(scores[ids], kind="stable")]


def mask_of(ids: Ids, size: int) -> Bools:
    mask = np.zeros(size, np.bool_)
    mask[ids] = True
    return mask


def share_of(share: float, count: int) -> int:
    """How many of `count` a share is: rounded down, and one at least."""
    return max(int(share * count), 1)


def standardised(scores: Float32s | Float64s, among: Bools, groups: Float32s | None = None) -> Float64s:
    """(score - mean) / deviation of the population `among`, or of its group in it; 0 where all are equal, NaN where
    the score or the group is. O(size · log)."""
    values = np.asarray(scores, np.float64)
    known = np.flatnonzero(among & ~np.isnan(values) & (~np.isnan(groups) if groups is not None else True))
    result = np.full(len(values), np.nan)
    if not len(known):
        return result
    kinds = np.zeros(len(known), np.int64)
    if groups is not None:
        kinds = np.unique(groups[known], return_inverse=True)[1].reshape(-1)
    # Scaled first, so that squares of huge values stay finite.
    largest = max(float(np.abs(values[known]).max()), 1e-300)
    scaled = values[known] / largest
    count = np.bincount(kinds)
    mean = np.bincount(kinds, scaled) / count
    off = scaled - mean[kinds]
    deviation = np.sqrt(np.bincount(kinds, off * off) / count)[kinds]
    # What rounding leaves of equal values is no deviation.
    result[known] = np.where(deviation > 1e-12, off / np.maximum(deviation, 1e-300), 0.0)
    return result
