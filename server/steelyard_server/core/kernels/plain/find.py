"""From points on the mass line to ids: one level of the tree at a time, all targets side by side."""

from __future__ import annotations

import numpy as np

from steelyard_server.core.kernels.contract import Ids, Leaves, Word
from steelyard_server.core.kernels.layout import LEAF_SHIFT, LEAVES, NODE_SHIFT, NODES, PACKED, Offsets, Words
from steelyard_server.core.kernels.plain.sums import leaf_masses, level_of, node_masses


def find(
    leaves: Leaves,
    nodes: Words,
    offsets: Offsets,
    unseen: Word,
    extra: Word,
    targets: Words,
    ids: Ids,
    masses: Words,
) -> None:
    top = len(offsets) - 2
    line = node_masses(level_of(nodes, offsets, top), top, unseen, extra)
    ends = np.cumsum(line, dtype=np.uint64)
    node = np.searchsorted(ends, targets, side="right")
    rest = targets - (ends[node] - line[node])
    for level in range(top - 1, -1, -1):
        words = level_of(nodes, offsets, level)
        children = words.reshape(-1, NODES) if level < PACKED else words.reshape(-1, NODES, words.shape[1])
        place, rest = _descend(node_masses(children[node], level, unseen, extra), rest)
        node = (node << NODE_SHIFT) + place
    children = leaf_masses(leaves.reshape(-1, LEAVES)[node], unseen, extra)
    place, rest = _descend(children, rest)
    ids[:] = (node << LEAF_SHIFT) + place
    masses[:] = children[np.arange(len(place)), place]


def comb(
    leaves: Leaves,
    nodes: Words,
    offsets: Offsets,
    unseen: Word,
    extra: Word,
    total: Word,
    offset: Word,
    ids: Ids,
    masses: Words,
) -> int:
    teeth = np.uint64(ids.size)
    tooth = np.arange(ids.size, dtype=np.uint64)
    targets = tooth * (total // teeth) + (tooth * (total % teeth) + offset) // teeth
    find(leaves, nodes, offsets, unseen, extra, targets, ids, masses)
    return int(masses.max())


def _descend(children: Words, rest: Words) -> tuple[Ids, Words]:
    """The child that holds each target, and what is left of the target there: uint64[n, k], uint64[n]."""
    ends = np.cumsum(children, axis=1, dtype=np.uint64)
    place = (ends <= rest[:, np.newaxis]).sum(axis=1, dtype=np.int64)
    row = np.arange(len(place))
    return place, rest - (ends[row, place] - children[row, place])
