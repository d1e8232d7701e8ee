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
_FIND, _WHOLE, _SCORES = "tree: targets to ids", "tree: a whole draw", "tree: new scores for a batch"
_SUMS_FIND, _SUMS_BUILD = "cumulative sums: targets to ids", "cumulative sums: for any new score"
_ALIAS_FIND, _ALIAS_BUILD = "alias table: random numbers to ids", "alias table: for any new score"
_BUILT_ONCE = (("cumulative sums", _SUMS_FIND, _SUMS_BUILD), ("an alias table", _ALIAS_FIND, _ALIAS_BUILD))
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
    series = [Series(name, "µs", found[name], None if name == _FIND else _FIND) for name in draws]
    series += [Series(name, "µs", found[name]) for name in builds]
    series += _verdict(found)
    return Table(
        "still: draws while no score changes",
        series,
        {"ids": size, "batch": BATCH, **bytes_an_id},
        [*_NOTES, told],
    )


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

    def summed() -> None:
        np.cumsum(leaves, dtype=np.uint64, out=sums)

    draws: dict[str, Callable[[], object]] = {
        _FIND: lambda: tree.find_with_mass(next(targets), law),
        _SUMS_FIND: searched,
        _WHOLE: whole,
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
        draws[_ALIAS_FIND] = lambda: made.ids(*next(uniform))
        builds[_ALIAS_BUILD] = lambda: alias(leaves)
        bytes_an_id["alias"] = _an_id(leaves.nbytes + made.keep.nbytes + made.other.nbytes, leaves)
    return draws, builds, bytes_an_id


def _an_id(nbytes: int, leaves: npt.NDArray[np.uint32]) -> str:
    return f"{nbytes / leaves.size:.3g}"


def _verdict(found: Mapping[str, Sequence[float]]) -> list[Series]:
    """What a run would have of each: its draw over that with the tree, and how many batches must be drawn from the same
    scores before it has paid for being built (none where it never does)."""
    series = []
    for name, find, build in _BUILT_ONCE:
        if find not in found:
            continue
        turns = list(zip(found[_WHOLE], found[_FIND], found[find], found[_SCORES], found[build], strict=True))
        whole = [(draw - tree + other) / draw for draw, tree, other, _, _ in turns]
        series.append(Series(f"a whole draw with {name} / with the tree", "x", whole))
        if all(other < tree for _, tree, other, _, _ in turns):
            pays = [(anew - scores) / (tree - other) for _, tree, other, scores, anew in turns]
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
