"""Derived columns: one number per example, folded from the reported signals.

A derived column is named STATISTIC_SIGNAL, for example `last_loss` or `mean_el2n`; every other name is a static
column. A fold goes through a batch in position order, so an id that stands in it twice is folded twice, in that order.

`last`, `mean`, `ema` and `count` are of any signal. `forgotten` and `learned` are of one that says whether the model
was right, as `correct`: from 0.5 on it was. `learned_correct` is 2 where the model was right at the last report, 1
where it was so before and no more, 0 where it never was; `forgotten_correct` counts how often a right answer was
followed by a wrong one. Only losses have a history that columns are folded from when a policy begins to read them;
those of any other signal begin empty then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

SERVED = "served"
"""Not reported: each draw folds a 1 of it for every id of its batch, so that `count_served` is how often one was drawn
since the policy has read it."""

Ids = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Fold = Callable[[Mapping[str, Float32s], str, Ids, Float32s, float, bool], None]


@dataclass(frozen=True, slots=True)
class Derived:
    """A derived column: what is kept (`statistic`), of which signal, with the decay of an `ema`."""

    statistic: str
    signal: str
    decay: float = 0.9

    @property
    def name(self) -> str:
        return f"{self.statistic}_{self.signal}"

    @property
    def columns(self) -> tuple[str, ...]:
        """The arrays that the fold needs and keeps up: the column itself first. A method that reads one of the others
        as well does not ask for it again."""
        return tuple(
            f"{statistic}_{self.signal}" for statistic in _TOGETHER.get(self.statistic, (self.statistic,))
        )

    def fold(
        self, columns: Mapping[str, Float32s], ids: Ids, values: Float32s, *, distinct: bool = False
    ) -> None:
        """Folds finite `values` of `ids` into `columns` in place. O(m · times an id repeats).

        `distinct` says that none does, which is then not looked into.
        """
        _FOLDS[self.statistic](columns, self.signal, ids, values, self.decay, distinct)


@lru_cache(256)
def parse_derived(name: str, *, decay: float = 0.9) -> Derived | None:
    """The derived column of that name, or None where `name` is a static column's."""
    statistic, _, signal = name.partition("_")
    return Derived(statistic, signal, decay) if signal and statistic in _FOLDS else None


def ascending(ids: Ids) -> Ids:
    """The ids in ascending order, each once."""
    # By hand: np.unique takes several times as long for a batch. Ids of half the width are sorted in half the time.
    if len(ids) and not int(np.bitwise_or.reduce(ids)) >> 32:
        narrow = ids.astype(np.uint32)
        narrow.sort()
        ranked = narrow.astype(np.int64)
    else:
        ranked = np.sort(ids)
    if len(ids) < 2:
        return ranked
    differs = ranked[1:] != ranked[:-1]
    return ranked if differs.all() else ranked[np.concatenate(([True], differs))]


def _ranking(ids: Ids) -> Ids:
    """np.argsort(ids, kind="stable"). Numbers are sorted several times as fast as places, so where ids leave room each
    takes its place along in its lower bits."""
    bits = len(ids).bit_length()
    if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >> (63 - bits):
        return np.argsort(ids, kind="stable")
    both = (ids << bits) | np.arange(len(ids))
    both.sort()
    return both & ((1 << bits) - 1)


def last_occurrence(ids: Ids) -> Ids:
    """Positions of the last occurrence of each id, in ascending order of id."""
    order = _ranking(ids)
    ranked = ids[order]
    last = np.ones(len(ids), np.bool_)
    np.not_equal(ranked[1:], ranked[:-1], out=last[:-1])
    return order[last]


def _rounds(ids: Ids, distinct: bool) -> Iterator[Ids | slice]:
    """Positions such that no id stands twice in a round, and its occurrences come in order."""
    if distinct:
        yield slice(None)
        return
    order = _ranking(ids)
    ranked = ids[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(ids) else np.empty(0, np.int64)
    occurrence = np.arange(len(ids)) - np.repeat(starts, np.diff(np.r_[starts, len(ids)]))
    for number in range(int(occurrence.max(initial=-1)) + 1):
        yield order[occurrence == number]


def _last(
    columns: Mapping[str, Float32s], signal: str, ids: Ids, values: Float32s, decay: float, distinct: bool
) -> None:
    at = slice(None) if distinct else last_occurrence(ids)
    columns[f"last_{signal}"][ids[at]] = values[at]


def _count(
    columns: Mapping[str, Float32s], signal: str, ids: Ids, values: Float32s, decay: float, distinct: bool
) -> None:
    count = columns[f"count_{signal}"]
    for at in _rounds(ids, distinct):
        count[ids[at]] = np.nan_to_num(count[ids[at]]) + np.float32(1)


def _mean(
    columns: Mapping[str, Float32s], signal: str, ids: Ids, values: Float32s, decay: float, distinct: bool
) -> None:
    mean, count = columns[f"mean_{signal}"], columns[f"count_{signal}"]
    for at in _rounds(ids, distinct):
        n = np.nan_to_num(count[ids[at]]).astype(np.float64) + 1
        known = np.nan_to_num(mean[ids[at]]).astype(np.float64)
        mean[ids[at]] = (known + (values[at] - known) / n).astype(np.float32)
        count[ids[at]] = n.astype(np.float32)


def _ema(
    columns: Mapping[str, Float32s], signal: str, ids: Ids, values: Float32s, decay: float, distinct: bool
) -> None:
    ema = columns[f"ema_{signal}"]
    for at in _rounds(ids, distinct):
        known, new = ema[ids[at]].astype(np.float64), values[at].astype(np.float64)
        ema[ids[at]] = np.where(np.isnan(known), new, decay * known + (1 - decay) * new).astype(np.float32)


def _learned(
    columns: Mapping[str, Float32s], signal: str, ids: Ids, values: Float32s, decay: float, distinct: bool
) -> None:
    learned = columns[f"learned_{signal}"]
    for at in _rounds(ids, distinct):
        learned[ids[at]] = _learned_then(learned[ids[at]], values[at] >= _RIGHT)


def _forgotten(
    columns: Mapping[str, Float32s], signal: str, ids: Ids, values: Float32s, decay: float, distinct: bool
) -> None:
    forgotten, learned, count = (columns[f"{name}_{signal}"] for name in _TOGETHER["forgotten"])
    for at in _rounds(ids, distinct):
        before, right = learned[ids[at]], values[at] >= _RIGHT
        lost = (before == 2) & ~right
        forgotten[ids[at]] = np.nan_to_num(forgotten[ids[at]]) + lost
        learned[ids[at]] = _learned_then(before, right)
        count[ids[at]] = np.nan_to_num(count[ids[at]]) + np.float32(1)


def _learned_then(before: Float32s, right: npt.NDArray[np.bool_]) -> Float32s:
    ever = np.nan_to_num(before) > 0
    return np.where(right, 2, np.where(ever, 1, 0)).astype(np.float32)


_RIGHT = 0.5

_TOGETHER: Mapping[str, tuple[str, ...]] = {
    "mean": ("mean", "count"),
    "forgotten": ("forgotten", "learned", "count"),
}
_FOLDS: Mapping[str, Fold] = {
    "last": _last,
    "count": _count,
    "mean": _mean,
    "ema": _ema,
    "learned": _learned,
    "forgotten": _forgotten,
}
