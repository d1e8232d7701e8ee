"""From points on the mass line to ids: one level of the tree at a time, so that the memory a target needs on the next
one is on its way while the others are placed."""

from __future__ import annotations

import numpy as np

from steelyard_server.core.kernels.compiled.instructions import place_in_leaves, place_in_words, prefetch
from steelyard_server.core.kernels.compiled.machine import (
    COUNT,
    IDS,
    NOTHING,
    READ_IDS,
    READ_LEAVES,
    READ_WORDS,
    WORD,
    WORDS,
    inlined,
    kernel,
)
from steelyard_server.core.kernels.compiled.sums import (
    LEAF_SHIFT,
    NODE_SHIFT,
    NODES,
    ONE,
    PACKED,
    WIDE,
    ZERO,
    leaf_mass,
    node_mass,
    width_of,
)
from steelyard_server.core.kernels.contract import Ids, Leaves, Word
from steelyard_server.core.kernels.layout import Offsets, Words


@inlined
def _find_top(
    nodes: Words, offsets: Offsets, unseen: Word, extra: Word, targets: Words, ids: Ids, rests: Words
) -> None:
    top = offsets.size - 2
    width, start = width_of(offsets, top), np.uint64(offsets[top])
    ends = np.empty(np.int64(width) + 1, np.uint64)
    ends[0] = ZERO
    for node in range(width):
        ends[node + ONE] = ends[node] + node_mass(nodes, start, top, np.uint64(node), unseen, extra)
    # The last node that begins at or before the target, of those that weigh something: without branches, since
    # nobody could foretell them.
    for i in range(targets.size):
        target = targets[i]
        low, size = ZERO, width
        while size > ONE:
            half = size >> ONE
            low += half & (ZERO - np.uint64(ends[low + half] <= target))
            size -= half
        ids[i] = np.int64(low)
        rests[i] = target - ends[low]


@inlined
def _step_packed(nodes: Words, start: Word, unseen: Word, extra: Word, ids: Ids, rests: Words) -> None:
    for i in range(ids.size):
        first, rest = np.uint64(ids[i]) << NODE_SHIFT, rests[i]
        place, before = place_in_words(nodes, start + first, rest, unseen, extra)
        ids[i], rests[i] = np.int64(first + place), rest - before


@inlined
def _step_wide(nodes: Words, start: Word, unseen: Word, extra: Word, ids: Ids, rests: Words) -> None:
    for i in range(ids.size):
        first, rest = np.uint64(ids[i]) << NODE_SHIFT, rests[i]
        end, before, place = ZERO, ZERO, first
        for child in range(NODES):
            at = start + (first + np.uint64(child)) * WIDE
            mass = nodes[at] + nodes[at + ONE] * extra + nodes[at + ONE + ONE] * unseen
            end += mass
            past = np.uint64(end <= rest)
            place += past
            before += mass & (ZERO - past)
        ids[i], rests[i] = np.int64(place), rest - before


@inlined
def _step_leaves(leaves: Leaves, unseen: Word, extra: Word, ids: Ids, masses: Words) -> None:
    for i in range(ids.size):
        first = np.uint64(ids[i]) << LEAF_SHIFT
        place, _ = place_in_leaves(leaves, first, masses[i], unseen, extra)
        ids[i], masses[i] = np.int64(first + place), leaf_mass(leaves[first + place], unseen, extra)


@inlined
def _find_below_top(
    leaves: Leaves, nodes: Words, offsets: Offsets, unseen: Word, extra: Word, ids: Ids, masses: Words
) -> None:
    # On the way down `ids` holds the node that each target is in, `masses` how far into it.
    for level in range(offsets.size - 3, -1, -1):
        if level < PACKED:
            _step_packed(nodes, np.uint64(offsets[level]), unseen, extra, ids, masses)
        else:
            _step_wide(nodes, np.uint64(offsets[level]), unseen, extra, ids, masses)
        for i in range(ids.size):
            if level == 0:
                prefetch(leaves, np.uint64(ids[i]) << LEAF_SHIFT)
            elif level <= PACKED:
                prefetch(nodes, np.uint64(offsets[level - 1]) + (np.uint64(ids[i]) << NODE_SHIFT))
    _step_leaves(leaves, unseen, extra, ids, masses)


@kernel(NOTHING, READ_LEAVES, READ_WORDS, READ_IDS, WORD, WORD, READ_WORDS, IDS, WORDS)
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
    _find_top(nodes, offsets, unseen, extra, targets, ids, masses)
    _find_below_top(leaves, nodes, offsets, unseen, extra, ids, masses)


@inlined
def _comb_top(
    nodes: Words,
    offsets: Offsets,
    unseen: Word,
    extra: Word,
    total: Word,
    offset: Word,
    ids: Ids,
    rests: Words,
) -> None:
    """Targets that ascend meet the nodes in one sweep over both."""
    top, teeth = offsets.size - 2, np.uint64(ids.size)
    start = np.uint64(offsets[top])
    quotient, remainder = total // teeth, total % teeth
    node, begin = ZERO, ZERO
    end = node_mass(nodes, start, top, node, unseen, extra)
    for i in range(ids.size):
        tooth = np.uint64(i)
        target = tooth * quotient + (tooth * remainder + offset) // teeth
        while end <= target:
            node += ONE
            begin = end
            end += node_mass(nodes, start, top, node, unseen, extra)
        ids[i] = np.int64(node)
        rests[i] = target - begin


@kernel(COUNT, READ_LEAVES, READ_WORDS, READ_IDS, WORD, WORD, WORD, WORD, IDS, WORDS)
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
    _comb_top(nodes, offsets, unseen, extra, total, offset, ids, masses)
    _find_below_top(leaves, nodes, offsets, unseen, extra, ids, masses)
    greatest = ZERO
    for i in range(masses.size):
        greatest = max(greatest, masses[i])
    return int(greatest)
