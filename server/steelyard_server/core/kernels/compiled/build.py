"""The sums of a tree from its leaves."""

from __future__ import annotations

import numpy as np
from numba import types

from steelyard_server.core.kernels.compiled.machine import (
    COUNT,
    NOTHING,
    READ_IDS,
    READ_LEAVES,
    WORDS,
    inlined,
    kernel,
)
from steelyard_server.core.kernels.compiled.sums import (
    COUNT as COUNT_FIELD,
)
from steelyard_server.core.kernels.compiled.sums import (
    LEAF_SHIFT,
    LEAVES,
    LIVE_AT,
    MASS,
    NODE_SHIFT,
    NODES,
    ONE,
    PACKED,
    UNSEEN,
    UNSEEN_AT,
    WIDE,
    ZERO,
    leaf_word,
)
from steelyard_server.core.kernels.contract import Leaves, Word
from steelyard_server.core.kernels.layout import Offsets, Words

_LOW = np.uint64(2**32 - 1)
_HALF = np.uint64(32)


@inlined
def _sum_leaves(leaves: Leaves, first: Word) -> Word:
    total = ZERO
    for i in range(LEAVES):
        total += leaf_word(leaves[first + np.uint64(i)])
    return total


@inlined
def _sum_words(nodes: Words, first: Word) -> Word:
    total = ZERO
    for i in range(NODES):
        total += nodes[first + np.uint64(i)]
    return total


@inlined
def _widen(nodes: Words, first: Word, to: Word) -> None:
    mass, live, unseen = ZERO, ZERO, ZERO
    for i in range(NODES):
        word = nodes[first + np.uint64(i)]
        mass += word & MASS
        live += (word >> LIVE_AT) & COUNT_FIELD
        unseen += word >> UNSEEN_AT
    nodes[to], nodes[to + ONE], nodes[to + ONE + ONE] = mass, live, unseen


@inlined
def _sum_wide(nodes: Words, first: Word, to: Word) -> None:
    for kind in range(WIDE):
        total = ZERO
        for i in range(NODES):
            total += nodes[first + np.uint64(i) * WIDE + np.uint64(kind)]
        nodes[to + np.uint64(kind)] = total


@kernel(NOTHING, READ_LEAVES, WORDS, READ_IDS, COUNT, COUNT)
def build(leaves: Leaves, nodes: Words, offsets: Offsets, start: int, stop: int) -> None:
    if start >= stop:
        return
    first, last = np.uint64(start) >> LEAF_SHIFT, np.uint64(stop - 1) >> LEAF_SHIFT
    for node in range(first, last + ONE):
        nodes[node] = _sum_leaves(leaves, np.uint64(node) << LEAF_SHIFT)
    for level in range(1, offsets.size - 1):
        below, here = np.uint64(offsets[level - 1]), np.uint64(offsets[level])
        first, last = first >> NODE_SHIFT, last >> NODE_SHIFT
        for node in range(first, last + ONE):
            child = np.uint64(node) << NODE_SHIFT
            if level < PACKED:
                nodes[here + node] = _sum_words(nodes, below + child)
            elif level == PACKED:
                _widen(nodes, below + child, here + node * WIDE)
            else:
                _sum_wide(nodes, below + child * WIDE, here + node * WIDE)


@kernel(types.UniTuple(types.uint64, 2), READ_LEAVES)
def squares(leaves: Leaves) -> tuple[int, int]:
    high, low = ZERO, ZERO
    for i in range(leaves.size):
        leaf = leaves[i]
        mass = ZERO if leaf == UNSEEN else np.uint64(leaf)
        square = mass * mass
        high += square >> _HALF
        low += square & _LOW
    return int(high), int(low)
