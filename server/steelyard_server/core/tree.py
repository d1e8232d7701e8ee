"""The sampling tree: integer masses by id, and for any point on the mass line the id that lies there.

    top        up to TOP nodes, searched as one flat cumulative sum
    ...        each node the sum of FANOUT nodes below
    bottom     each node the sum of FANOUT leaves
    leaves     one uint32 per id: 0 = may not be drawn, UNSEEN = never reported, else its mass

Masses are integers, so an update is an exact delta, sums never drift, and the order of updates leaves no
trace. A node keeps three sums (mass of the reported leaves, number of live leaves, number of unseen leaves),
from which its mass under any `Law` follows: what unseen examples weigh and how much uniform is mixed in are
chosen at each draw and never rewrite a leaf.

A batch of targets goes down the tree as one sorted sweep: the children of all nodes that it visits on a
level are laid side by side, one cumulative sum and one binary search serve every target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UNSEEN = 2**32 - 1
"""The leaf of an example that may be drawn and has no reported score; what it weighs is the law's to say."""

_SHIFT = 5
FANOUT = 1 << _SHIFT
"""Children of a node; the inner nodes cost 24/31 bytes an id. `make bench ARGS="--only core"` compares finding ids
at 16, 32 and 64. With 32, one level under TOP is enough for a million ids."""

TOP = 1 << 15
"""The most nodes the flat top level may have: below this, summing them all is cheaper than another level."""

MAX_SIZE = 2**32
"""Leaves are below 2**32, so with so many of them no node sum can wrap."""

_MAX_TOTAL = 2**63
_CHUNK = FANOUT << 12

Ids = npt.NDArray[np.int64]
Leaves = npt.NDArray[np.uint32]
Masses = npt.NDArray[np.uint64]


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
    """Masses of ids 0..size-1. Changed by `set` and `append` alone; a call that raises changes nothing.

    Not safe for use from two threads at once. With n the number of ids asked for, `set`, `find`, `prefix`
    and `effective` cost O(n * levels); those that take a law and search (`find`, `prefix`, `at_least`) cost
    O(TOP) more.
    """

    __slots__ = ("_leaves", "_levels", "_live", "_mass", "_size", "_unseen")

    _leaves: Leaves
    _levels: list[Masses]
    _size: int
    _mass: int
    _live: int
    _unseen: int

    def __init__(self, leaves: Leaves) -> None:
        """A copy of `leaves`, uint32[size]; O(size). ValueError if there are more than 2**32."""
        _check_leaves(leaves)
        if leaves.size > MAX_SIZE:
            raise ValueError(f"expected at most {MAX_SIZE} leaves, got {leaves.size}")
        self._build(leaves, capacity=leaves.size)

    @property
    def size(self) -> int:
        """The number of ids, those that may not be drawn included."""
        return self._size

    @property
    def mass(self) -> int:
        """The sum of the leaves that are neither 0 nor UNSEEN."""
        return self._mass

    @property
    def live(self) -> int:
        """The number of leaves that are not 0, the unseen ones included."""
        return self._live

    @property
    def unseen(self) -> int:
        """The number of UNSEEN leaves."""
        return self._unseen

    @property
    def nbytes(self) -> int:
        """Bytes held by leaves and nodes, the room kept for appends included."""
        return self._leaves.nbytes + sum(level.nbytes for level in self._levels)

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
        if ids.size == 0:
            return
        self._check_ids(ids)
        ids, leaves = _sorted_unique(ids, leaves)
        deltas = _kinds_of(leaves) - _kinds_of(self._leaves[ids])
        self._leaves[ids] = leaves
        self._add(ids, deltas)

    def append(self, leaves: Leaves) -> None:
        """Give the next ids `size`, `size`+1, ... these leaves (uint32[n]).

        Amortised O(n): a full rebuild with an eighth of room to spare whenever the room runs out. ValueError
        if there would be more than 2**32 leaves.
        """
        _check_leaves(leaves)
        size = self._size + leaves.size
        if size > MAX_SIZE:
            raise ValueError(f"expected at most {MAX_SIZE} leaves, got {self._size} and {leaves.size} more")
        if size > self._leaves.size:
            self._build(np.concatenate([self.all_leaves(), leaves]), capacity=min(size + size // 8, MAX_SIZE))
            return
        start, self._size = self._size, size
        self._leaves[start:size] = leaves
        for chunk_start in range(start, size, _CHUNK):
            chunk = self._leaves[chunk_start : min(chunk_start + _CHUNK, size)]
            self._add(np.arange(chunk_start, chunk_start + chunk.size), _kinds_of(chunk))

    def total(self, law: Law) -> int:
        """The mass of all ids under `law`. ValueError if it is not below 2**63."""
        total = self._mass + law.unseen * self._unseen + law.extra * self._live
        if total >= _MAX_TOTAL:
            raise ValueError(
                f"expected a total mass below 2**63, got {total}: {self._mass} of reported examples"
                f" + {self._unseen} unseen of {law.unseen} + {self._live} live of {law.extra} extra"
            )
        return total

    def effective(self, ids: Ids, law: Law) -> Masses:
        """The masses of `ids` under `law`, int64[n] -> uint64[n]. ValueError at an id out of range."""
        self.total(law)
        return _leaf_masses(self.leaves(ids), law)

    def find(self, targets: Masses, law: Law) -> Ids:
        """The id at each point of the mass line, uint64[n] in any order -> int64[n].

        Id i answers target t when prefix(i) <= t < prefix(i) + effective(i). ValueError unless every target
        is below total(law).
        """
        total = self.total(law)
        # A signed target would turn the differences below into floats.
        if targets.dtype != np.uint64 or targets.ndim != 1:
            raise ValueError(
                f"expected a flat array of uint64 targets, got {targets.dtype} of shape {targets.shape}"
            )
        if targets.size == 0:
            return np.zeros(0, np.int64)
        if int(targets.max()) >= total:
            raise ValueError(f"expected targets below the total mass {total}, got {int(targets.max())}")
        if np.all(targets[1:] >= targets[:-1]):
            return self._sweep(targets, law)
        order = np.argsort(targets)
        ids = np.empty(targets.size, np.int64)
        ids[order] = self._sweep(targets[order], law)
        return ids

    def prefix(self, ids: Ids, law: Law) -> Masses:
        """The mass of all ids below each of `ids`, int64[n] -> uint64[n]. ValueError at one out of range."""
        self.total(law)
        self._check_ids(ids)
        before = np.zeros(ids.size, np.uint64)
        child = ids
        for depth in range(len(self._levels)):
            node = child >> _SHIFT
            siblings = self._children(depth, node, law)
            siblings[np.arange(FANOUT) >= (child & (FANOUT - 1))[:, np.newaxis]] = 0
            before += siblings.sum(axis=1, dtype=np.uint64)
            child = node
        top = _node_masses(self._levels[-1], law)
        before += (np.cumsum(top, dtype=np.uint64) - top)[child]
        return before

    def at_least(self, threshold: int, law: Law, limit: int) -> Ids:
        """The ids whose mass under `law` is `threshold` or more, ascending, int64[n].

        Looks only into nodes that hold so much, so it costs O(TOP + total / threshold * levels). ValueError
        unless `threshold` >= 1, and if there are more than `limit` such ids.
        """
        if threshold < 1:
            raise ValueError(f"expected a threshold of 1 or more, got {threshold}")
        if threshold > self.total(law):
            return np.zeros(0, np.int64)
        found = np.flatnonzero(_node_masses(self._levels[-1], law) >= np.uint64(threshold))
        for depth in reversed(range(len(self._levels))):
            row, column = np.nonzero(self._children(depth, found, law) >= np.uint64(threshold))
            found = (found[row] << _SHIFT) + column
        if found.size > limit:
            raise ValueError(f"expected at most {limit} ids of mass {threshold} or more, got {found.size}")
        return found

    def sum_of_squares(self, law: Law) -> float:
        """The sum of the squared masses; O(size), for statistics: its last bits depend on the machine."""
        self.total(law)
        squares = 0.0
        for chunk in self._chunks():
            masses = _leaf_masses(chunk, law).astype(np.float64)
            squares += float(np.sum(masses * masses))
        return squares

    def check(self) -> None:
        """Recompute every sum from the leaves; O(size). AssertionError naming the first that is wrong."""
        if self._leaves.size % FANOUT or self._size > self._leaves.size:
            raise AssertionError(f"{self._leaves.size} leaf places for {self._size} ids at fan-out {FANOUT}")
        if np.any(self._leaves[self._size :]):
            raise AssertionError(f"a leaf past the last of {self._size} ids is not 0")
        expected = _build_levels(self._leaves)
        if [level.shape for level in self._levels] != [level.shape for level in expected]:
            raise AssertionError(
                f"{len(self._levels)} levels where {len(expected)} were expected, or of other widths"
            )
        for depth, (level, right) in enumerate(zip(self._levels, expected, strict=True)):
            wrong = np.argwhere(level != right)
            if wrong.size:
                kind, node = (int(i) for i in wrong[0])
                raise AssertionError(
                    f"{len(wrong)} wrong sums at level {depth}, the first the {_KINDS[kind]} of node {node}:"
                    f" {int(level[kind, node])}, its leaves give {int(right[kind, node])}"
                )
        sums = tuple(int(total) for total in expected[-1].sum(axis=1, dtype=np.uint64))
        if sums != (self._mass, self._live, self._unseen):
            raise AssertionError(
                f"mass, live, unseen are {self._mass, self._live, self._unseen}, the leaves give {sums}"
            )

    def _build(self, leaves: Leaves, capacity: int) -> None:
        padded = np.zeros(_whole_nodes(capacity), np.uint32)
        padded[: leaves.size] = leaves
        self._leaves, self._size = padded, leaves.size
        self._levels = _build_levels(padded)
        self._mass, self._live, self._unseen = (int(s) for s in self._levels[-1].sum(axis=1, dtype=np.uint64))

    def _add(self, ids: Ids, deltas: Masses) -> None:
        """Add uint64[3, n] modulo 2**64 to the nodes above ascending `ids`."""
        node = ids
        # In the steady state every example drawn was reported before: the two counts stay as they are.
        kinds = [kind for kind in range(len(_KINDS)) if np.any(deltas[kind])]
        changes = [deltas[kind] for kind in kinds]
        for level in self._levels:
            node = node >> _SHIFT
            first = _first_of_runs(node)
            node = node[first]
            changes = [np.add.reduceat(change, first) for change in changes]
            for kind, change in zip(kinds, changes, strict=True):
                level[kind, node] += change
        sums = deltas.sum(axis=1, dtype=np.uint64)
        self._mass, self._live, self._unseen = (
            (old + int(delta)) % 2**64
            for old, delta in zip((self._mass, self._live, self._unseen), sums, strict=True)
        )

    def _sweep(self, targets: Masses, law: Law) -> Ids:
        """`find` for ascending targets that are known to be in range."""
        line = _node_masses(self._levels[-1], law)
        ends = np.cumsum(line, dtype=np.uint64)
        node = np.searchsorted(ends, targets, side="right")
        rest = targets - (ends[node] - line[node])
        for depth in reversed(range(len(self._levels))):
            first = _first_of_runs(node)
            visited = node[first]
            line = self._children(depth, visited, law).ravel()
            ends = np.cumsum(line, dtype=np.uint64)
            # Row k of the line is the k-th visited node; it starts where row k-1 ends.
            row = np.repeat(np.arange(visited.size), np.diff(first, append=node.size))
            starts = np.zeros(visited.size, np.uint64)
            starts[1:] = ends[FANOUT - 1 : -1 : FANOUT]
            rest += starts[row]
            place = np.searchsorted(ends, rest, side="right")
            rest -= ends[place] - line[place]
            node = (node << _SHIFT) + (place - (row << _SHIFT))
        return node

    def _children(self, depth: int, nodes: Ids, law: Law) -> Masses:
        """The masses under `law` of the children of `nodes` at level `depth`, uint64[n, FANOUT]; a copy."""
        if depth == 0:
            return _leaf_masses(self._leaves.reshape(-1, FANOUT)[nodes], law)
        return _node_masses(self._levels[depth - 1].reshape(len(_KINDS), -1, FANOUT)[:, nodes], law)

    def _chunks(self) -> Iterator[Leaves]:
        for start in range(0, self._size, _CHUNK):
            yield self._leaves[start : min(start + _CHUNK, self._size)]

    def _check_ids(self, ids: Ids) -> None:
        if ids.ndim != 1:
            raise ValueError(f"expected a flat array of ids, got shape {ids.shape}")
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= self._size):
            raise ValueError(f"expected ids in 0..{self._size - 1}, got {int(ids.min())}..{int(ids.max())}")


_KINDS = ("mass", "live count", "unseen count")


def _check_leaves(leaves: Leaves) -> None:
    if leaves.dtype != np.uint32 or leaves.ndim != 1:
        raise ValueError(
            f"expected a flat array of uint32 leaves, got {leaves.dtype} of shape {leaves.shape}"
        )


def _whole_nodes(count: int) -> int:
    """`count` rounded up to whole nodes, at least one."""
    return max(-(-count // FANOUT), 1) * FANOUT


def _build_levels(leaves: Leaves) -> list[Masses]:
    """The levels above whole nodes of leaves, bottom first, each uint64[3, nodes] in the order of _KINDS."""
    bottom = np.zeros((len(_KINDS), _whole_nodes(leaves.size // FANOUT)), np.uint64)
    for start in range(0, leaves.size, _CHUNK):
        sums = _sum_nodes(_kinds_of(leaves[start : start + _CHUNK]))
        node = start >> _SHIFT
        bottom[:, node : node + sums.shape[1]] = sums
    levels = [bottom]
    while levels[-1].shape[1] > TOP:
        sums = _sum_nodes(levels[-1])
        level = np.zeros((len(_KINDS), _whole_nodes(sums.shape[1])), np.uint64)
        level[:, : sums.shape[1]] = sums
        levels.append(level)
    return levels


def _sum_nodes(children: Masses) -> Masses:
    """uint64[3, n * FANOUT] -> uint64[3, n]."""
    sums: Masses = children.reshape(len(_KINDS), -1, FANOUT).sum(axis=2, dtype=np.uint64)
    return sums


def _kinds_of(leaves: Leaves) -> Masses:
    """What each leaf adds to the three sums of its node: uint32[n] -> uint64[3, n]."""
    kinds = np.empty((len(_KINDS), leaves.size), np.uint64)
    unseen = leaves == UNSEEN
    kinds[0] = leaves
    kinds[0, unseen] = 0
    kinds[1] = leaves != 0
    kinds[2] = unseen
    return kinds


def _node_masses(sums: Masses, law: Law) -> Masses:
    """Masses of nodes from their sums, uint64[3, ...] -> uint64[...]; none wraps where the total does not."""
    masses: Masses = sums[0]
    if law.unseen:
        masses = masses + sums[2] * np.uint64(law.unseen)
    if law.extra:
        masses = masses + sums[1] * np.uint64(law.extra)
    return masses


def _leaf_masses(leaves: Leaves, law: Law) -> Masses:
    """Masses of leaves, uint32[...] -> uint64[...]."""
    masses = leaves.astype(np.uint64)
    np.copyto(masses, np.uint64(law.unseen), where=leaves == UNSEEN)
    if law.extra:
        masses += (leaves != 0) * np.uint64(law.extra)
    return masses


def _first_of_runs(ascending: Ids) -> Ids:
    """Where each run of equal values begins, int64[n >= 1] -> int64[runs]."""
    starts = np.empty(ascending.size, np.bool_)
    starts[0] = True
    np.not_equal(ascending[1:], ascending[:-1], out=starts[1:])
    return np.flatnonzero(starts)


def _sorted_unique(ids: Ids, leaves: Leaves) -> tuple[Ids, Leaves]:
    """Both, in ascending order of ids. ValueError, with the id, where one comes twice."""
    order = np.argsort(ids)
    ids = ids[order]
    twice = np.flatnonzero(ids[1:] == ids[:-1])
    if twice.size:
        raise ValueError(f"expected each id once, got {int(ids[twice[0]])} more than once")
    return ids, leaves[order]
