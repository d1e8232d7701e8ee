"""The sums of a tree from its leaves."""

from __future__ import annotations

import numpy as np

from steelyard_server.core.kernels.contract import Leaves
from steelyard_server.core.kernels.layout import (
    LEAF_SHIFT,
    LEAVES,
    NODE_SHIFT,
    NODES,
    PACKED,
    UNSEEN,
    Offsets,
    Words,
)
from steelyard_server.core.kernels.plain.sums import leaf_sums, level_of, node_sums, pack

_CHUNK = 1 << 17
_LOW = np.uint64(2**32 - 1)
_HALF = np.uint64(32)


def build(leaves: Leaves, nodes: Words, offsets: Offsets, start: int, stop: int) -> None:
    if start >= stop:
        return
    first, last = start >> LEAF_SHIFT, (stop - 1) >> LEAF_SHIFT
    bottom = level_of(nodes, offsets, 0)
    for node in range(first, last + 1, _CHUNK):
        end = min(node + _CHUNK, last + 1)
        sums = leaf_sums(leaves[node << LEAF_SHIFT : end << LEAF_SHIFT])
        bottom[node:end] = pack(*(_sum_groups(each, LEAVES) for each in sums))
    for level in range(1, len(offsets) - 1):
        below = level_of(nodes, offsets, level - 1)
        first, last = first >> NODE_SHIFT, last >> NODE_SHIFT
        children = below[first << NODE_SHIFT : (last + 1) << NODE_SHIFT]
        here = level_of(nodes, offsets, level)
        if level < PACKED:
            here[first : last + 1] = _sum_groups(children, NODES)
        else:
            for kind, each in enumerate(node_sums(children, level - 1)):
                here[first : last + 1, kind] = _sum_groups(each, NODES)


def squares(leaves: Leaves) -> tuple[int, int]:
    high = low = 0
    for start in range(0, len(leaves), _CHUNK):
        masses = leaves[start : start + _CHUNK].astype(np.uint64)
        masses[masses == UNSEEN] = 0
        masses *= masses
        high += int((masses >> _HALF).sum(dtype=np.uint64))
        low += int((masses & _LOW).sum(dtype=np.uint64))
    return high, low


def _sum_groups(values: Words, size: int) -> Words:
    """uint64[n * size] -> uint64[n]."""
    sums: Words = values.reshape(-1, size).sum(axis=1, dtype=np.uint64)
    return sums
