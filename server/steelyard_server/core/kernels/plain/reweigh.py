"""From scores to leaves and their sums."""

from __future__ import annotations

import numpy as np

from steelyard_server.core.kernels.contract import Float32s, Ids, Leaves
from steelyard_server.core.kernels.layout import Offsets, Words
from steelyard_server.core.kernels.plain.scores import leaves_of
from steelyard_server.core.kernels.plain.update import update


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
    live = ids[leaves[ids] != 0]
    values = np.empty(len(live), np.uint32)
    top = leaves_of(scores[live], rule, factor, scale, values)
    update(leaves, nodes, offsets, totals, live, values)
    return top
