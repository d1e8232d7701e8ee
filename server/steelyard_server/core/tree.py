"""The sampling tree: integer masses by id, and for any point on the mass line the id that lies there.

    top        up to TOP nodes, searched as one flat cumulative sum
    ...        each node the sum of 8 nodes below
    bottom     each node the sum of 16 leaves
    leaves     one uint32 per id: 0 = may not be drawn, UNSEEN = never reported, else its mass

Masses are integers, so an update is an exact delta, sums never drift, and the order of updates leaves no
trace. A node keeps three sums (mass of the reported leaves, number of live leaves, number of unseen leaves),
from which its mass under any `Law` follows: what unseen examples weigh and how much uniform is mixed in are
chosen at each draw and never rewrite a leaf.

Children side by side are one cache line, leaves as well as nodes: a search touches one line a level, and waits for
memory, where the tree is large, for all targets of a level at once. How the sums are laid in memory is in
`kernels.layout`; the loops over them are kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard_server.core import kernels
from steelyard_server.core.kernels import layout, plain
from steelyard_server.core.kernels.plain.sums import level_of, node_sums

UNSEEN = layout.UNSEEN

TOP = 1 << 10
"""The most nodes the flat top level may have: below this, summing them all is cheaper than another level."""

MAX_SIZE = 2**32
"""Leaves are below 2**32, so with so many of them no sum can wrap."""

CHUNK = 1 << 20
"""Leaves that are filled and summed at a time: they are in a cache still when they are summed. Whole nodes."""

GREAT = 1 << 12
"""Of the total: a mass above a part of so many is found wherever it is."""

_MAX_TOTAL = 2**63
_MAX_TEETH = 2**31
_LINE = 64

Ids = npt.NDArray[np.int64]
Leaves = npt.NDArray[np.uint32]
Masses = npt.NDArray[np.uint64]
Fill = Callable[[int, Leaves], None]
"""fill(start, leaves) writes the leaves of the ids from `start` on, as many as there is room for."""


@dataclass(frozen=True, slots=True)
class Law:
    """What leaves weigh in one draw: 0 stays 0, UNSEEN is `unseen` + `extra`, any other is leaf + `extra`.

    `unseen` is the mass of an example never reported, `extra` the share of uniform mixed in; both are
    integers in 0..2**63-1 in units of a leaf (ValueError otherwise).
    """

    unseen: int = 0
    extra: int = 0

    def __post_init__(self) -> None:
        for name, value in (("unseen", self.unseen), ("extra", self.extra)):
            if not 0 <= value < _MAX_TOTAL:
                raise ValueError(f"expected {name} in 0..2**63-1, got {value}")


class MassTree:
    """Masses of ids 0..size-1. Changed by `set`, `reweigh`, `append`, `extend` and `refill` alone; a call that
    raises changes nothing.

    Not safe for use from two threads at once. With n the number of ids asked for, `set`, `find`, `prefix`
    and `effective` cost O(n * levels); those that take a law and search (`find`, `prefix`, `at_least`) cost
    O(TOP) more. Memory: 4.6 bytes an id.
    """

    __slots__ = ("_leaves", "_nodes", "_offsets", "_size", "_totals")

    _leaves: Leaves
    _nodes: Masses
    _offsets: npt.NDArray[np.int64]
    _totals: Masses
    """Mass, live, unseen, and the sum of the squared leaves: its part above 2**32, and that below."""

    def __init__(self, leaves: Leaves) -> None:
        """A tree over a copy of `leaves`, uint32[size]; ValueError if they are of another type or over 2**32."""
        _check_leaves(leaves)
        self._size = 0
        self._totals = np.zeros(5, np.uint64)
        self._make_room(leaves.size, spare=False)
        self.append(leaves)

    @classmethod
    def filled(cls, size: int, fill: Fill) -> MassTree:
        """A tree over `size` leaves that `fill` writes, some at a time: nothing but the tree is held."""
        tree = cls(np.zeros(0, np.uint32))
        tree._make_room(size, spare=False)
        tree.extend(size, fill)
        return tree

    @property
    def size(self) -> int:
        return self._size

    @property
    def mass(self) -> int:
        """The sum of the leaves that are neither 0 nor UNSEEN."""
        return int(self._totals[0])

    @property
    def live(self) -> int:
        """The number of leaves that are not 0, the unseen ones included."""
        return int(self._totals[1])

    @property
    def unseen(self) -> int:
        """The number of UNSEEN leaves."""
        return int(self._totals[2])

    @property
    def nbytes(self) -> int:
        """Bytes held by leaves and nodes, the room kept for appends included."""
        return self._leaves.nbytes + self._nodes.nbytes

    def leaves(self, ids: Ids) -> Leaves:
        """The leaves at `ids`, int64[n] -> uint32[n]. ValueError at an id out of range."""
        self._check_ids(ids)
        return self._leaves[ids]

    def all_leaves(self) -> Leaves:
        """A read-only view of every leaf, uint32[size]; it follows `set` and is stale after an `append`."""
        view = self._leaves[: self._size]
        view.flags.writeable = False
        return view

    def set(self, ids: Ids, leaves: Leaves) -> None:
        """Give each of `ids` (int64[n], unique, any order) its new leaf (uint32[n]).

        ValueError when the lengths differ, an id is out of range or comes twice.
        """
        _check_leaves(leaves)
        if ids.shape != leaves.shape:
            raise ValueError(f"expected as many leaves as ids, got {leaves.shape} and {ids.shape}")
        if not self._check_ids(ids):
            _check_unique(ids)
        kernels.active.update(
            self._leaves, self._nodes, self._offsets, self._totals, _flat(ids), np.ascontiguousarray(leaves)
        )

    def reweigh(
        self, ids: Ids, scores: npt.NDArray[np.float32], rule: int, factor: float, scale: int
    ) -> float:
        """Give those of `ids` (int64[n], unique, any order) that are live the leaf of their score, float32[size].

        `rule`, `factor` and `scale` are those of `kernels.scores`. log2 of the weight of the greatest of these scores,
        -inf where there is none. ValueError as for `set`, or where there are fewer scores than ids.
        """
        if scores.dtype != np.float32 or scores.ndim != 1 or scores.size < self._size:
            raise ValueError(
                f"expected {self._size} scores of float32, got {scores.dtype} of shape {scores.shape}"
            )
        if not self._check_ids(ids):
            _check_unique(ids)
        return kernels.active.reweigh(
            np.ascontiguousarray(scores),
            _flat(ids),
            rule,
            factor,
            scale,
            self._leaves,
            self._nodes,
            self._offsets,
            self._totals,
        )

    def append(self, leaves: Leaves) -> None:
        """Give the next ids `size`, `size`+1, ... these leaves (uint32[n]).

        Amortised O(n): a full rebuild with an eighth of room to spare whenever the room runs out. ValueError
        if there would be more than 2**32 leaves.
        """
        _check_leaves(leaves)

        def fill(start: int, part: Leaves) -> None:
            part[:] = leaves[start - first : start - first + part.size]

        first = self._size
        self.extend(first + leaves.size, fill)

    def extend(self, size: int, fill: Fill) -> None:
        """Append leaves that `fill` writes, up to `size` of them in all; the same cost and refusal as `append`."""
        if not self._size <= size <= MAX_SIZE:
            raise ValueError(
                f"expected at least the {self._size} leaves that are there and at most {MAX_SIZE}, got {size}"
            )
        if size > self._leaves.size:
            self._make_room(size, spare=True)
        start = self._size
        try:
            high, low = self._fill(start, size, fill)
        except BaseException:
            self._leaves[start:size] = 0
            kernels.active.build(self._leaves, self._nodes, self._offsets, start, size)
            raise
        self._size = size
        self._total_up(int(self._totals[3]) + high, int(self._totals[4]) + low)

    def refill(self, fill: Fill) -> None:
        """Replace every leaf by what `fill` writes, in place. Where that raises, the tree is spoilt."""
        self._total_up(*self._fill(0, self._size, fill))

    def total(self, law: Law) -> int:
        """The mass of all ids under `law`. ValueError if it is not below 2**63."""
        mass, live, unseen = self._totals[:3].tolist()
        total: int = mass + law.unseen * unseen + law.extra * live
        if total >= _MAX_TOTAL:
            raise ValueError(
                f"expected a total mass below 2**63, got {total}: {mass} of reported examples"
                f" + {unseen} unseen of {law.unseen} + {live} live of {law.extra} extra"
            )
        return total

    def effective(self, ids: Ids, law: Law) -> Masses:
        """The masses of `ids` under `law`, int64[n] -> uint64[n]. ValueError at an id out of range."""
        self.total(law)
        self._check_ids(ids)
        masses = np.empty(ids.size, np.uint64)
        kernels.active.masses(self._leaves, np.uint64(law.unseen), np.uint64(law.extra), _flat(ids), masses)
        return masses

    def find(self, targets: Masses, law: Law) -> Ids:
        """The id at each point of the mass line, uint64[n] in any order -> int64[n].

        Id i answers target t when prefix(i) <= t < prefix(i) + effective(i). ValueError unless every target
        is below total(law).
        """
        return self.find_with_mass(targets, law)[0]

    def find_with_mass(self, targets: Masses, law: Law) -> tuple[Ids, Masses]:
        """`find`, and the masses of the ids found under `law`, uint64[n]."""
        total = self.total(law)
        # A signed target would turn the differences below into floats.
        if targets.dtype != np.uint64 or targets.ndim != 1:
            raise ValueError(
                f"expected a flat array of uint64 targets, got {targets.dtype} of shape {targets.shape}"
            )
        ids, masses = np.empty(targets.size, np.int64), np.empty(targets.size, np.uint64)
        if targets.size == 0:
            return ids, masses
        if int(targets.max()) >= total:
            raise ValueError(f"expected targets below the total mass {total}, got {int(targets.max())}")
        kernels.active.find(*self._arrays(law), np.ascontiguousarray(targets), ids, masses)
        return ids, masses

    def comb(self, teeth: int, offset: int, law: Law) -> tuple[Ids, Masses, int]:
        """The ids at floor((j * total + offset) / teeth), j = 0..teeth-1, of the mass line, their masses under `law`,
        int64[teeth] and uint64[teeth], and the greatest of these.

        ValueError unless 1 <= teeth <= 2**31 and 0 <= offset < total(law).
        """
        total = self.total(law)
        if not 1 <= teeth <= _MAX_TEETH or not 0 <= offset < total:
            raise ValueError(
                f"expected 1..2**31 teeth and an offset below the total mass {total}, got {teeth} and {offset}"
            )
        ids, masses = np.empty(teeth, np.int64), np.empty(teeth, np.uint64)
        greatest = kernels.active.comb(*self._arrays(law), np.uint64(total), np.uint64(offset), ids, masses)
        return ids, masses, greatest

    def prefix(self, ids: Ids, law: Law) -> Masses:
        """The mass of all ids below each of `ids`, int64[n] -> uint64[n]. ValueError at one out of range."""
        self.total(law)
        self._check_ids(ids)
        before = np.empty(ids.size, np.uint64)
        kernels.active.prefix(*self._arrays(law), _flat(ids), before)
        return before

    def at_least(self, threshold: int, law: Law, limit: int) -> Ids:
        """The ids whose mass under `law` is `threshold` or more, ascending, int64[n].

        Looks only into nodes that hold so much, so it costs O(TOP + total / threshold * levels). ValueError
        unless `threshold` >= 1, and if there are more than `limit` such ids.
        """
        if threshold < 1:
            raise ValueError(f"expected a threshold of 1 or more, got {threshold}")
        total = self.total(law)
        if threshold > total:
            return np.zeros(0, np.int64)
        most = min(total // threshold, self._size)
        found = kernels.active.at_least(*self._arrays(law), np.uint64(threshold), most)
        if found.size > limit:
            raise ValueError(f"expected at most {limit} ids of mass {threshold} or more, got {found.size}")
        return found

    def greatest(self, law: Law, most: int) -> int:
        """The greatest mass under `law`: of all ids where they are at most `most` or it is more than a share of
        1 / GREAT of the total, else that of `most` evenly spaced ones. O(most + GREAT * levels)."""
        total = self.total(law)
        if not total:
            return 0
        if self._size <= most:
            great = np.zeros(0, np.int64)
        else:
            great = self.at_least(total // GREAT + 1, law, GREAT)
        if not great.size:
            great = np.arange(0, self._size, max(1, -(-self._size // most)))
        return int(self.effective(great, law).max())

    def sum_of_squares(self, law: Law) -> int:
        """The sum of the squared masses, exact."""
        self.total(law)
        mass, live, unseen, high, low = (int(each) for each in self._totals)
        reported = (high << 32) + low + 2 * law.extra * mass + law.extra**2 * (live - unseen)
        return reported + (law.unseen + law.extra) ** 2 * unseen

    def check(self) -> None:
        """Recompute every sum from the leaves; O(size). AssertionError naming the first that is wrong."""
        if self._leaves.size % layout.LEAVES or self._size > self._leaves.size:
            raise AssertionError(
                f"{self._leaves.size} leaf places for {self._size} ids at {layout.LEAVES} leaves a node"
            )
        if np.any(self._leaves[self._size :]):
            raise AssertionError(f"a leaf past the last of {self._size} ids is not 0")
        expected = np.zeros(self._nodes.size, np.uint64)
        plain.build(self._leaves, expected, self._offsets, 0, self._leaves.size)
        for level in range(len(self._offsets) - 1):
            found = node_sums(level_of(self._nodes, self._offsets, level), level)
            right = node_sums(level_of(expected, self._offsets, level), level)
            for kind, (sums, proper) in enumerate(zip(found, right, strict=True)):
                wrong = np.flatnonzero(sums != proper)
                if wrong.size:
                    node = int(wrong[0])
                    raise AssertionError(
                        f"{len(wrong)} wrong sums at level {level}, the first the {_KINDS[kind]} of node {node}:"
                        f" {int(sums[node])}, its leaves give {int(proper[node])}"
                    )
        totals = [int(total.sum(dtype=np.uint64)) for total in right] + list(plain.squares(self._leaves))
        if totals != self._totals.tolist():
            raise AssertionError(
                f"mass, live, unseen and squares are {self._totals.tolist()}, the leaves give {totals}"
            )

    def _arrays(self, law: Law) -> tuple[Leaves, Masses, npt.NDArray[np.int64], np.uint64, np.uint64]:
        return self._leaves, self._nodes, self._offsets, np.uint64(law.unseen), np.uint64(law.extra)

    def _make_room(self, size: int, *, spare: bool) -> None:
        """Places for `size` leaves; the nodes above those that are there are summed afresh."""
        places = min(size + size // 8, MAX_SIZE) if spare else size
        places = max(-(-places // layout.LEAVES), 1) * layout.LEAVES
        offsets = layout.offsets_of(places, TOP)
        # Pages of zeros cost nothing before they are written, so the room to spare is not yet memory.
        leaves, nodes = _zeros(places, np.uint32), _zeros(int(offsets[-1]), np.uint64)
        if self._size:
            leaves[: self._size] = self._leaves[: self._size]
        self._leaves, self._nodes, self._offsets = leaves, nodes, offsets
        kernels.active.build(leaves, nodes, offsets, 0, self._size)

    def _fill(self, start: int, stop: int, fill: Fill) -> tuple[int, int]:
        """Writes the leaves start..stop-1 and sums them into the nodes; their squares, as in the totals."""
        high = low = 0
        for first in range(start, stop, CHUNK):
            part = self._leaves[first : min(first + CHUNK, stop)]
            fill(first, part)
            kernels.active.build(self._leaves, self._nodes, self._offsets, first, first + part.size)
            squares = kernels.active.squares(part)
            high, low = high + squares[0], low + squares[1]
        return high, low

    def _total_up(self, high: int, low: int) -> None:
        """Takes the totals from the top of the tree, and these of the squares."""
        top = len(self._offsets) - 2
        sums = node_sums(level_of(self._nodes, self._offsets, top), top)
        self._totals[:] = [*(each.sum(dtype=np.uint64) for each in sums), high, low]

    def _check_ids(self, ids: Ids) -> bool:
        """Whether each id is above the one before. ValueError where one is out of range."""
        if ids.ndim != 1:
            raise ValueError(f"expected a flat array of ids, got shape {ids.shape}")
        found = kernels.active.ids_within(_flat(ids), self._size)
        if found == _OUTSIDE:
            raise ValueError(f"expected ids in 0..{self._size - 1}, got {int(ids.min())}..{int(ids.max())}")
        return found == _ASCENDING


_KINDS = ("mass", "live count", "unseen count")
_ASCENDING, _OUTSIDE = 0, 2


def _check_leaves(leaves: Leaves) -> None:
    if leaves.dtype != np.uint32 or leaves.ndim != 1:
        raise ValueError(
            f"expected a flat array of uint32 leaves, got {leaves.dtype} of shape {leaves.shape}"
        )


def _check_unique(ids: Ids) -> None:
    """ValueError, with the id, where one comes twice."""
    ordered = np.sort(ids)
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if twice.size:
        raise ValueError(f"expected each id once, got {int(ordered[twice[0]])} more than once")


def _flat(ids: Ids) -> Ids:
    """As kernels take them: int64, side by side; a copy only where they are not."""
    return np.ascontiguousarray(ids, np.int64)


def _zeros(count: int, dtype: Any) -> npt.NDArray[Any]:
    """An array of zeros that begins at a cache line."""
    size = count * np.dtype(dtype).itemsize
    room = np.zeros(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].view(dtype)
