"""From scores to leaves and their sums in one go: the scores of a block are in the nearest cache for all of it."""

from __future__ import annotations

import numpy as np
from numba import types

from steelyard_server.core.kernels.compiled.instructions import prefetch
from steelyard_server.core.kernels.compiled.machine import (
    COUNT,
    FLOAT,
    LEAVES,
    READ_IDS,
    READ_SCORES,
    WORDS,
    kernel,
)
from steelyard_server.core.kernels.compiled.scores import BLOCK, fill, greatest
from steelyard_server.core.kernels.compiled.update import give
from steelyard_server.core.kernels.contract import Float32s, Ids, Leaves
from steelyard_server.core.kernels.layout import Offsets, Words

_NO_LEAF = np.uint32(0)


@kernel(types.float64, READ_SCORES, READ_IDS, COUNT, FLOAT, FLOAT, LEAVES, WORDS, READ_IDS, WORDS)
def reweigh(
    scores: Float32s,
    ids: Ids,
    rule: int,
    factor: float,
    scale: float,
    leaves: Leaves,
    nodes: Words,
    offsets: Offsets,
    totals: Words,
) -> float:
    top = -np.inf
    values, live, new = np.empty(BLOCK, np.float64), np.empty(BLOCK, np.int64), np.empty(BLOCK, np.uint32)
    for start in range(0, ids.size, BLOCK):
        stop = min(start + BLOCK, ids.size)
        for i in range(start, stop):
            at = np.uint64(ids[i])
            prefetch(scores, at)
            prefetch(leaves, at)
        count = 0
        for i in range(start, stop):
            at = np.uint64(ids[i])
            if leaves[at] != _NO_LEAF:
                score = np.float64(scores[at])
                live[count], values[count] = ids[i], score
                top = score if score > top else top
                count += 1
        fill(values, count, rule, factor, scale, new, 0)
        give(leaves, nodes, offsets, totals, live[:count], new[:count])
    return greatest(top, rule, factor)
