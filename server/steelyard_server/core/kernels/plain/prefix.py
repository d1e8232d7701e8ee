"""What some ids weigh, what lies below them on the mass line, and which ids weigh much."""

from __future__ import annotations

import numpy as np

from steelyard_server.core.kernels.contract import Ids, Leaves, Word
from steelyard_server.core.kernels.layout import LEAF_SHIFT, LEAVES, NODE_SHIFT, NODES, PACKED, Offsets, Words
from steelyard_server.core.kernels.plain.sums import leaf_masses, level_of, node_masses


def masses(leaves: Leaves, unseen: Word, extra: Word, ids: Ids, masses: Words) -> None:
    masses[:] = leaf_masses(leaves[ids], unseen, extra)


def prefix(
    leaves: Leaves, nodes: Words, offsets: Offsets, unseen: Word, extra: Word, ids: Ids, before: Words
) -> None:
    node = ids >> LEAF_SHIFT
    before[:] = _sum_before(leaf_masses(leaves.reshape(-1, LEAVES)[node], unseen, extra), ids & (LEAVES - 1))
    top = len(offsets) - 2
    for level in range(top):
        parent = node >> NODE_SHIFT
        siblings = _children(nodes, offsets, level, parent, unseen, extra)
        before += _sum_before(siblings, node & (NODES - 1))
        node = parent
    line = node_masses(level_of(nodes, offsets, top), top, unseen, extra)
    before += (np.cumsum(line, dtype=np.uint64) - line)[node]


def at_least(
    leaves: Leaves, nodes: Words, offsets: Offsets, unseen: Word, extra: Word, threshold: Word, most: int
) -> Ids:
    top = len(offsets) - 2
    found = np.flatnonzero(node_masses(level_of(nodes, offsets, top), top, unseen, extra) >= threshold)
    for level in range(top - 1, -1, -1):
        row, column = np.nonzero(_children(nodes, offsets, level, found, unseen, extra) >= threshold)
        found = (found[row] << NODE_SHIFT) + column
    row, column = np.nonzero(leaf_masses(leaves.reshape(-1, LEAVES)[found], unseen, extra) >= threshold)
    return (found[row] << LEAF_SHIFT) + column


def _children(nodes: Words, offsets: Offsets, level: int, parents: Ids, unseen: Word, extra: Word) -> Words:
    """The masses of the nodes of `level` below each of `parents`, uint64[n, NODES]."""
    words = level_of(nodes, offsets, level)
    groups = words.reshape(-1, NODES) if level < PACKED else words.reshape(-1, NODES, words.shape[1])
    return node_masses(groups[parents], level, unseen, extra)


def _sum_before(siblings: Words, place: Ids) -> Words:
    """The sum of those before `place` in each row, uint64[n, k] -> uint64[n]; a copy."""
    kept = np.where(np.arange(siblings.shape[1]) < place[:, np.newaxis], siblings, np.uint64(0))
    sums: Words = kept.sum(axis=1, dtype=np.uint64)
    return sums
