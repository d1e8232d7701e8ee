"""Masses of leaves and nodes under a law, and what a leaf adds to the sums of its node."""

from __future__ import annotations

import numpy as np

from steelyard_server.core.kernels.contract import Leaves, Word
from steelyard_server.core.kernels.layout import COUNT_BITS, MASS_BITS, PACKED, UNSEEN, WIDE, Offsets, Words

_MASS = np.uint64((1 << MASS_BITS) - 1)
_COUNT = np.uint64((1 << COUNT_BITS) - 1)
_LIVE_AT = np.uint64(MASS_BITS)
_UNSEEN_AT = np.uint64(MASS_BITS + COUNT_BITS)


def leaf_masses(leaves: Leaves, unseen: Word, extra: Word) -> Words:
    """uint32[...] -> uint64[...]."""
    masses = leaves.astype(np.uint64)
    np.copyto(masses, unseen, where=leaves == UNSEEN)
    if extra:
        masses += (leaves != 0) * extra
    return masses


def leaf_sums(leaves: Leaves) -> tuple[Words, Words, Words]:
    """The mass, live count and unseen count of each leaf, uint64[n] each."""
    unseen = leaves == UNSEEN
    mass = leaves.astype(np.uint64)
    mass[unseen] = 0
    return mass, (leaves != 0).astype(np.uint64), unseen.astype(np.uint64)


def pack(mass: Words, live: Words, unseen: Words) -> Words:
    words: Words = mass + (live << _LIVE_AT) + (unseen << _UNSEEN_AT)
    return words


def unpack(words: Words) -> tuple[Words, Words, Words]:
    return words & _MASS, (words >> _LIVE_AT) & _COUNT, words >> _UNSEEN_AT


def level_of(nodes: Words, offsets: Offsets, level: int) -> Words:
    """A view of one level: uint64[width], or uint64[width, 3] where nodes are wide."""
    words = nodes[offsets[level] : offsets[level + 1]]
    return words if level < PACKED else words.reshape(-1, WIDE)


def node_sums(nodes: Words, level: int) -> tuple[Words, Words, Words]:
    """Mass, live and unseen count of some nodes of a level, in any shape."""
    return unpack(nodes) if level < PACKED else (nodes[..., 0], nodes[..., 1], nodes[..., 2])


def node_masses(nodes: Words, level: int, unseen: Word, extra: Word) -> Words:
    """What some nodes of a level weigh; none wraps where the total does not."""
    mass, live, never = node_sums(nodes, level)
    if unseen:
        mass = mass + never * unseen
    if extra:
        mass = mass + live * extra
    return mass
