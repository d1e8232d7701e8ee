"""What some ids weigh, what lies below them on the mass line, and which ids weigh much."""

from __future__ import annotations

import numpy as np

from steelyard_server.core.kernels.compiled.machine import (
    COUNT,
    IDS,
    NOTHING,
    READ_IDS,
    READ_LEAVES,
    READ_WORDS,
    WORD,
    WORDS,
    kernel,
)
from steelyard_server.core.kernels.compiled.sums import (
    LEAF_PLACE,
    LEAF_SHIFT,
    LEAVES,
    NODE_PLACE,
    NODE_SHIFT,
    NODES,
    ZERO,
    leaf_mass,
    node_mass,
    width_of,
)
from steelyard_server.core.kernels.contract import Ids, Leaves, Word
from steelyard_server.core.kernels.layout import Offsets, Words


@kernel(NOTHING, READ_LEAVES, WORD, WORD, READ_IDS, WORDS)
def masses(leaves: Leaves, unseen: Word, extra: Word, ids: Ids, masses: Words) -> None:
    for i in range(ids.size):
        masses[i] = leaf_mass(leaves[np.uint64(ids[i])], unseen, extra)


@kernel(NOTHING, READ_LEAVES, READ_WORDS, READ_IDS, WORD, WORD, READ_IDS, WORDS)
def prefix(
    leaves: Leaves, nodes: Words, offsets: Offsets, unseen: Word, extra: Word, ids: Ids, before: Words
) -> None:
    top = offsets.size - 2
    width, start = width_of(offsets, top), np.uint64(offsets[top])
    begins = np.empty(np.int64(width), np.uint64)
    end = ZERO
    for node in range(width):
        begins[node] = end
        end += node_mass(nodes, start, top, np.uint64(node), unseen, extra)
    for i in range(ids.size):
        at, total = np.uint64(ids[i]), ZERO
        for leaf in range(at & ~LEAF_PLACE, at):
            total += leaf_mass(leaves[leaf], unseen, extra)
        child = at >> LEAF_SHIFT
        for level in range(top):
            for sibling in range(child & ~NODE_PLACE, child):
                total += node_mass(nodes, np.uint64(offsets[level]), level, np.uint64(sibling), unseen, extra)
            child = child >> NODE_SHIFT
        before[i] = total + begins[child]


@kernel(IDS, READ_LEAVES, READ_WORDS, READ_IDS, WORD, WORD, WORD, COUNT)
def at_least(
    leaves: Leaves, nodes: Words, offsets: Offsets, unseen: Word, extra: Word, threshold: Word, most: int
) -> Ids:
    top = offsets.size - 2
    start = np.uint64(offsets[top])
    found, count = np.empty(min(most, int(np.int64(width_of(offsets, top)))), np.int64), 0
    for node in range(width_of(offsets, top)):
        if node_mass(nodes, start, top, np.uint64(node), unseen, extra) >= threshold:
            found[count] = np.int64(node)
            count += 1
    for level in range(top - 1, -1, -1):
        start = np.uint64(offsets[level])
        parents, many = found, count
        found, count = np.empty(min(most, many << 3), np.int64), 0
        for i in range(many):
            first = np.uint64(parents[i]) << NODE_SHIFT
            for child in range(first, first + NODES):
                if node_mass(nodes, start, level, np.uint64(child), unseen, extra) >= threshold:
                    found[count] = np.int64(child)
                    count += 1
    parents, many = found, count
    found, count = np.empty(min(most, many << 4), np.int64), 0
    for i in range(many):
        first = np.uint64(parents[i]) << LEAF_SHIFT
        for leaf in range(first, first + LEAVES):
            if leaf_mass(leaves[leaf], unseen, extra) >= threshold:
                found[count] = np.int64(leaf)
                count += 1
    return found[:count].copy()
