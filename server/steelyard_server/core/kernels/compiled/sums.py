"""Masses of leaves and nodes under a law, and what a leaf adds to the sums of its node; one at a time."""

from __future__ import annotations

import numpy as np

from steelyard_server.core.kernels import layout
from steelyard_server.core.kernels.compiled.machine import inlined
from steelyard_server.core.kernels.layout import Words

# numba turns a uint64 and an int64 into a float64: every number that meets a word is one.
ZERO = np.uint64(0)
ONE = np.uint64(1)
UNSEEN = np.uint32(layout.UNSEEN)
PACKED = layout.PACKED
WIDE = np.uint64(layout.WIDE)
LEAVES = np.uint64(layout.LEAVES)
LEAF_SHIFT = np.uint64(layout.LEAF_SHIFT)
LEAF_PLACE = np.uint64(layout.LEAVES - 1)
NODES = np.uint64(layout.NODES)
NODE_SHIFT = np.uint64(layout.NODE_SHIFT)
NODE_PLACE = np.uint64(layout.NODES - 1)
MASS = np.uint64((1 << layout.MASS_BITS) - 1)
COUNT = np.uint64((1 << layout.COUNT_BITS) - 1)
LIVE_AT = np.uint64(layout.MASS_BITS)
UNSEEN_AT = np.uint64(layout.MASS_BITS + layout.COUNT_BITS)
LIVE_ONE = np.uint64(1 << layout.MASS_BITS)
UNSEEN_ONE = np.uint64(1 << (layout.MASS_BITS + layout.COUNT_BITS))


@inlined
def leaf_mass(leaf: np.uint32, unseen: np.uint64, extra: np.uint64) -> np.uint64:
    mass = np.uint64(leaf) + extra
    mass = unseen + extra if leaf == UNSEEN else mass
    return ZERO if leaf == np.uint32(0) else mass


@inlined
def leaf_word(leaf: np.uint32) -> np.uint64:
    """The three sums of a leaf, packed."""
    word = np.uint64(leaf) + LIVE_ONE
    word = LIVE_ONE + UNSEEN_ONE if leaf == UNSEEN else word
    return ZERO if leaf == np.uint32(0) else word


@inlined
def word_mass(word: np.uint64, unseen: np.uint64, extra: np.uint64) -> np.uint64:
    """What a packed node weighs."""
    return (word & MASS) + ((word >> LIVE_AT) & COUNT) * extra + (word >> UNSEEN_AT) * unseen


@inlined
def node_mass(
    nodes: Words, start: np.uint64, level: int, node: np.uint64, unseen: np.uint64, extra: np.uint64
) -> np.uint64:
    """What a node weighs of the level that begins at `start`."""
    if level < PACKED:
        return word_mass(nodes[start + node], unseen, extra)
    at = start + node * WIDE
    mass: np.uint64 = nodes[at] + nodes[at + ONE] * extra + nodes[at + ONE + ONE] * unseen
    return mass


@inlined
def width_of(offsets: layout.Offsets, level: int) -> np.uint64:
    """How many nodes a level has."""
    words = np.uint64(offsets[level + 1] - offsets[level])
    return words if level < PACKED else words // WIDE
