"""New leaves for some ids, and their differences in every sum above."""

from __future__ import annotations

import numpy as np
from numba import types

from steelyard_server.core.kernels.compiled.instructions import prefetch
from steelyard_server.core.kernels.compiled.machine import (
    COUNT,
    LEAVES,
    NOTHING,
    READ_IDS,
    READ_LEAVES,
    WORDS,
    inlined,
    kernel,
)
from steelyard_server.core.kernels.compiled.sums import (
    LEAF_SHIFT,
    NODE_SHIFT,
    ONE,
    PACKED,
    UNSEEN,
    WIDE,
    ZERO,
    leaf_word,
)
from steelyard_server.core.kernels.contract import Ids, Word
from steelyard_server.core.kernels.contract import Leaves as LeafArray
from steelyard_server.core.kernels.layout import Offsets, Words

_LOW = np.uint64(2**32 - 1)
_HALF = np.uint64(32)
# How far ahead of its use the memory of an id is asked for.
_AHEAD = 16


@inlined
def _ask_for(leaves: LeafArray, nodes: Words, offsets: Offsets, at: Word) -> None:
    prefetch(leaves, at)
    node = at >> LEAF_SHIFT
    prefetch(nodes, node)
    if offsets.size > 2:
        prefetch(nodes, np.uint64(offsets[1]) + (node >> NODE_SHIFT))


@inlined
def _mass(leaf: np.uint32) -> Word:
    return ZERO if leaf == UNSEEN else np.uint64(leaf)


@inlined
def _live(leaf: np.uint32) -> Word:
    return ZERO if leaf == np.uint32(0) else ONE


@inlined
def _unseen(leaf: np.uint32) -> Word:
    return ONE if leaf == UNSEEN else ZERO


@kernel(types.int64, READ_IDS, COUNT)
def ids_within(ids: Ids, size: int) -> int:
    previous = -1
    ascending = True
    for i in range(ids.size):
        current = ids[i]
        if current < 0 or current >= size:
            return 2
        ascending &= current > previous
        previous = current
    return 0 if ascending else 1


@inlined
def give(
    leaves: LeafArray, nodes: Words, offsets: Offsets, totals: Words, ids: Ids, values: LeafArray
) -> None:
    """`update`."""
    levels = offsets.size - 1
    mass, live, unseen, high, low = totals[0], totals[1], totals[2], totals[3], totals[4]
    for i in range(min(_AHEAD, ids.size)):
        _ask_for(leaves, nodes, offsets, np.uint64(ids[i]))
    for i in range(ids.size):
        if i + _AHEAD < ids.size:
            _ask_for(leaves, nodes, offsets, np.uint64(ids[i + _AHEAD]))
        at, new = np.uint64(ids[i]), values[i]
        old = leaves[at]
        if old == new:
            continue
        leaves[at] = new
        word = leaf_word(new) - leaf_word(old)
        more, lives, unseens = _mass(new) - _mass(old), _live(new) - _live(old), _unseen(new) - _unseen(old)
        node = at >> LEAF_SHIFT
        for level in range(levels):
            start = np.uint64(offsets[level])
            if level < PACKED:
                nodes[start + node] += word
            else:
                place = start + node * WIDE
                nodes[place] += more
                nodes[place + ONE] += lives
                nodes[place + ONE + ONE] += unseens
            node = node >> NODE_SHIFT
        mass, live, unseen = mass + more, live + lives, unseen + unseens
        was, now = _mass(old) * _mass(old), _mass(new) * _mass(new)
        high += (now >> _HALF) - (was >> _HALF)
        low += (now & _LOW) - (was & _LOW)
    totals[0], totals[1], totals[2], totals[3], totals[4] = mass, live, unseen, high, low


@kernel(NOTHING, LEAVES, WORDS, READ_IDS, WORDS, READ_IDS, READ_LEAVES)
def update(
    leaves: LeafArray, nodes: Words, offsets: Offsets, totals: Words, ids: Ids, values: LeafArray
) -> None:
    give(leaves, nodes, offsets, totals, ids, values)
