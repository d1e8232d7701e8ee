"""The shape of a mass tree: how many leaves and nodes a node has, and how its sums are laid in words.

    leaves      uint32 each; LEAVES side by side are a cache line and belong to one bottom node
    nodes       uint64, all levels in one array, bottom first; NODES side by side are a cache line (packed)

A node has three sums: mass, live leaves, unseen leaves. On the lowest PACKED levels they share a word, since a node
there stands for at most 1024 leaves: 42 bits of mass (1024 * 2**32 = 2**42, and no leaf is a full 2**32), 11 bits
for each count. Adding words adds the sums; adding modulo 2**64 takes differences too, for a field that ends in range
has ended where it should whatever was borrowed on the way. On the levels above, a node is three words side by side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UNSEEN = 2**32 - 1
"""The leaf of an example that may be drawn and has no reported score; what it weighs is the law's to say."""

LEAF_SHIFT = 4
LEAVES = 1 << LEAF_SHIFT
"""Leaves of a bottom node."""

NODE_SHIFT = 3
NODES = 1 << NODE_SHIFT
"""Children of a node above the bottom."""

PACKED = 3
"""Levels whose nodes are one word; LEAVES * NODES**(PACKED - 1) leaves are what the fields have room for."""

WIDE = 3
"""Words of a node on the levels above: mass, live, unseen."""

MASS_BITS = 42
COUNT_BITS = 11

Words = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]


def words_of(level: int) -> int:
    """Words of a node of `level`, counted from the bottom."""
    return 1 if level < PACKED else WIDE


def offsets_of(leaves: int, top: int) -> Offsets:
    """Where each level of a tree over `leaves` places begins in the array of nodes, and its end: int64[levels + 1].

    Levels follow until one has no more than `top` nodes. `leaves` is a multiple of LEAVES. Each level is padded to
    whole groups of NODES with nodes that are 0.
    """
    width = leaves >> LEAF_SHIFT
    offsets = [0]
    while True:
        width = max(-(-width // NODES), 1) * NODES
        offsets.append(offsets[-1] + width * words_of(len(offsets) - 1))
        if width <= max(top, NODES):
            return np.array(offsets, np.int64)
        width >>= NODE_SHIFT
