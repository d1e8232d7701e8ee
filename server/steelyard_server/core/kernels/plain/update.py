"""New leaves for some ids, and their differences in every sum above."""

from __future__ import annotations

import numpy as np

from steelyard_server.core.kernels.contract import Ids, Leaves
from steelyard_server.core.kernels.layout import LEAF_SHIFT, NODE_SHIFT, PACKED, UNSEEN, WIDE, Offsets, Words
from steelyard_server.core.kernels.plain.sums import leaf_sums, level_of, pack

_LOW = np.uint64(2**32 - 1)
_HALF = np.uint64(32)


def ids_within(ids: Ids, size: int) -> int:
    if not ids.size:
        return 0
    if int(ids.min()) < 0 or int(ids.max()) >= size:
        return 2
    return 0 if np.all(ids[1:] > ids[:-1]) else 1


def update(leaves: Leaves, nodes: Words, offsets: Offsets, totals: Words, ids: Ids, values: Leaves) -> None:
    before = leaves[ids]
    changes = [new - old for new, old in zip(leaf_sums(values), leaf_sums(before), strict=True)]
    leaves[ids] = values
    packed = pack(changes[0], changes[1], changes[2])
    node = ids >> LEAF_SHIFT
    for level in range(len(offsets) - 1):
        words = level_of(nodes, offsets, level)
        if level < PACKED:
            np.add.at(words, node, packed)
        else:
            for kind in range(WIDE):
                np.add.at(words[:, kind], node, changes[kind])
        node = node >> NODE_SHIFT
    changes += [new - old for new, old in zip(_squares(values), _squares(before), strict=True)]
    totals += np.array([change.sum(dtype=np.uint64) for change in changes], np.uint64)


def _squares(leaves: Leaves) -> tuple[Words, Words]:
    masses = leaves.astype(np.uint64)
    masses[leaves == UNSEEN] = 0
    masses *= masses
    return masses >> _HALF, masses & _LOW
