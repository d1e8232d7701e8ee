"""Drawing while scores stay as they are: the tree, which takes new ones cheaply, beside structures that are built once,
and anew for any new score."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard_server.core.random import Purpose, bits
from steelyard_server.core.sampling import Sampling, comb, sample
from steelyard_server.core.tree import Law, MassTree
from tests.benchmarks import own_kernels
from tests.benchmarks.measure import Options, Series, Table, in_turns, seconds_a_call

BATCH = 1024
_QUANTA = 2.0**20
_POOL = 64
"""Targets of so many batches, taken in turn: what makes them costs everybody the same."""
_NUMBERS = 1 << 53
_FIND, _WHOLE, _SCORES = "tree: targets to ids", "tree: a whole draw", "tree: new scores for a batch"
_SUMS = "cumulative sums"
_SUMS_FIND, _SUMS_WHOLE = f"{_SUMS}: targets to ids", f"{_SUMS}: a whole draw"
_SUMS_BUILD = f"{_SUMS}: for any new score"
_ALIAS = "alias table"
_ALIAS_FIND, _ALIAS_WHOLE = f"{_ALIAS}: random numbers to ids", f"{_ALIAS}: a whole draw"
_ALIAS_BUILD = f"{_ALIAS}: for any new score"
_BUILT_ONCE = ((_SUMS, _SUMS_WHOLE, _SUMS_BUILD), (_ALIAS, _ALIAS_WHOLE, _ALIAS_BUILD))
_NOTES = (
    (
        "cumulative sums: uint64, searched for the same ascending targets as the tree, to the same ids and masses; "
        "any new score and any retired id needs them anew"
    ),
    "alias table: independent draws, not stratified ones, in float64, so not of the exact law; built by numba",
    "a whole draw: random bits of the step, targets, ids, probabilities, shuffle",
)

Masses = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class _Alias:
    """Of two ids at each place, the first with this probability."""

    keep: npt.NDArray[np.float64]
    other: npt.NDArray[np.int64]

    def ids(self, places: npt.NDArray[np.int64], numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Of uniform places and numbers in [0, 1)."""
        return np.where(numbers < self.keep[places], places, self.other[places])


def measure(options: Options) -> Iterator[Table]:
    told = own_kernels.take()
    sizes = [10_000] if options.quick else [10_000, 1_000_000, 10_000_000]
    for size in [*sizes, 100_000_000] if options.large else sizes:
        yield _table(options, size, told)


def _table(options: Options, size: int, told: str) -> Table:
    weights = np.random.default_rng(1).lognormal(size=size).astype(np.float32)
    leaves = np.maximum(weights * np.float32(_QUANTA), 1).astype(np.uint32)
    draws, builds, bytes_an_id = _contenders(leaves)
    found = in_turns(
        options.repeats,
        {
            **{name: _microseconds(action) for name, action in draws.items()},
            **{name: _microseconds(action) for name, action in builds.items()},
        },
    )
    series = [Series(name, "µs", found[name], _reference(name)) for name in draws]
    series += [Series(name, "µs", found[name]) for name in builds]
    series += _verdict(found)
    return Table(
        "still: draws while no score changes",
        series,
        {"ids": size, "batch": BATCH, **bytes_an_id},
        [*_NOTES, told],
    )


def _reference(name: str) -> str | None:
    """What of the tree a draw is held against."""
    if name in (_FIND, _WHOLE):
        return None
    return _WHOLE if name in (_SUMS_WHOLE, _ALIAS_WHOLE) else _FIND


def _contenders(
    leaves: npt.NDArray[np.uint32],
) -> tuple[Mapping[str, Callable[[], object]], Mapping[str, Callable[[], object]], Mapping[str, object]]:
    """Draws by name, what it takes to have one more score by name, and bytes an id."""
    tree, law, steps = MassTree(leaves), Law(), itertools.count()
    total = tree.total(law)
    sums = np.cumsum(leaves, dtype=np.uint64)
    ids = np.random.default_rng(2).choice(leaves.size, BATCH, replace=False)
    # Exchanged, so that the total and with it the targets stay.
    changes = [(ids, leaves[ids]), (ids, np.roll(leaves[ids], 1))]
    targets = itertools.cycle(
        [comb(total, BATCH, bits(1, Purpose.DRAW, step).below(total, BATCH)) for step in range(_POOL)]
    )

    def whole() -> object:
        step = next(steps)
        draw, order = bits(1, Purpose.DRAW, step), bits(1, Purpose.ORDER, step)
        return sample(tree, law, BATCH, Sampling.STRATIFIED, draw, order)

    def searched() -> object:
        found = np.searchsorted(sums, next(targets), side="right")
        return found, leaves[found]

    def whole_by_sums() -> object:
        step = next(steps)
        offsets = bits(1, Purpose.DRAW, step).below(total, BATCH)
        found = np.searchsorted(sums, comb(total, BATCH, offsets), side="right")
        return _shuffled(found, leaves[found] / np.float64(total), step)

    def summed() -> None:
        np.cumsum(leaves, dtype=np.uint64, out=sums)

    draws: dict[str, Callable[[], object]] = {
        _FIND: lambda: tree.find_with_mass(next(targets), law),
        _SUMS_FIND: searched,
        _WHOLE: whole,
        _SUMS_WHOLE: whole_by_sums,
    }
    builds: dict[str, Callable[[], object]] = {
        _SCORES: lambda: tree.set(*changes[next(steps) % 2]),
        _SUMS_BUILD: summed,
    }
    bytes_an_id = {
        "bytes/id, tree": _an_id(tree.nbytes, leaves),
        "sums": _an_id(leaves.nbytes + sums.nbytes, leaves),
    }
    alias = _alias_builder()
    if alias is not None:
        made = alias(leaves)
        rng = np.random.default_rng(3)
        uniform = itertools.cycle(
            [(rng.integers(0, leaves.size, BATCH), rng.random(BATCH)) for _ in range(_POOL)]
        )

        def whole_by_alias() -> object:
            step = next(steps)
            draw = bits(1, Purpose.DRAW, step)
            places, numbers = draw.below(leaves.size, BATCH), draw.below(_NUMBERS, BATCH)
            found = made.ids(places.view(np.int64), numbers / np.float64(_NUMBERS))
            return _shuffled(found, leaves[found] / np.float64(total), step)

        draws[_ALIAS_FIND] = lambda: made.ids(*next(uniform))
        draws[_ALIAS_WHOLE] = whole_by_alias
        builds[_ALIAS_BUILD] = lambda: alias(leaves)
        bytes_an_id["alias"] = _an_id(leaves.nbytes + made.keep.nbytes + made.other.nbytes, leaves)
    return draws, builds, bytes_an_id


def _shuffled(ids: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], step: int) -> object:
    order = bits(1, Purpose.ORDER, step).order(BATCH)
    return ids.take(order), probability.take(order)


def _an_id(nbytes: int, leaves: npt.NDArray[np.uint32]) -> str:
    return f"{nbytes / leaves.size:.3g}"


def _verdict(found: Mapping[str, Sequence[float]]) -> list[Series]:
    """How many batches must be drawn from the same scores before something has paid for being built; none where a draw
    from it takes as long as one from the tree."""
    series = []
    for name, whole, build in _BUILT_ONCE:
        if whole not in found:
            continue
        turns = list(zip(found[_WHOLE], found[whole], found[_SCORES], found[build], strict=True))
        if all(other < tree for tree, other, _, _ in turns):
            pays = [max(0.0, anew - scores) / (tree - other) for tree, other, scores, anew in turns]
            series.append(Series(f"batches without a new score until {name} has paid", "", pays))
    return series


def _alias_builder() -> Callable[[npt.NDArray[np.uint32]], _Alias] | None:
    """Vose's method, O(size); None without numba."""
    try:
        from numba import njit
    except ImportError:
        return None

    def vose(leaves: Any, keep: Any, other: Any, waiting: Any) -> None:
        scale = leaves.size / leaves.sum()
        # Those below the mean wait at the front, the others at the back.
        low, high = 0, leaves.size
        for one in range(leaves.size):
            keep[one] = leaves[one] * scale
            other[one] = one
            if keep[one] < 1.0:
                waiting[low] = one
                low += 1
            else:
                high -= 1
                waiting[high] = one
        while low > 0 and high < leaves.size:
            low -= 1
            poor, rich = waiting[low], waiting[high]
            other[poor] = rich
            keep[rich] -= 1.0 - keep[poor]
            if keep[rich] < 1.0:
                high += 1
                waiting[low] = rich
                low += 1

    compiled = njit(vose)

    def build(leaves: npt.NDArray[np.uint32]) -> _Alias:
        made = _Alias(np.empty(leaves.size, np.float64), np.empty(leaves.size, np.int64))
        compiled(leaves, made.keep, made.other, np.empty(leaves.size, np.int64))
        return made

    return build


def _microseconds(action: Callable[[], object]) -> Callable[[], float]:
    return lambda: 1e6 * seconds_a_call(action)
