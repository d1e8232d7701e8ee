"""From scores to leaves, by the logarithm and power of `core.exact`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard_server.core.exact import log2, quantise
from steelyard_server.core.kernels.contract import Float32s, Float64s, Leaves
from steelyard_server.core.kernels.layout import UNSEEN
from steelyard_server.core.kernels.scores import FLAT, MAX_LOG2, POWER

_CHUNK = 1 << 16


def log2_weights(scores: npt.NDArray[np.floating[Any]], rule: int, factor: float) -> Float64s:
    """log2 of the weight of each score, float[n] -> float64[n]; NaN where there is no score."""
    values = scores.astype(np.float64)
    known = ~np.isnan(values)
    if rule == POWER:
        result = np.full(values.shape, np.nan)
        result[known] = log2(np.maximum(values[known], 0.0))
        return result * factor
    if rule == FLAT:
        return np.where(known, 0.0, np.nan)
    return np.clip(values * factor, -MAX_LOG2, MAX_LOG2)


def greatest_log2_weight(scores: Float32s, rule: int, factor: float) -> float:
    """log2 of the weight of the greatest score; -inf where there is none, or it weighs nothing."""
    # fmax passes NaN over, and the rules are monotone.
    top = np.fmax.reduce(scores, initial=np.float32(-np.inf))
    # Which of the zeros is the greatest is the processor's to say: -0 becomes 0.
    return float(log2_weights(np.array([top]), rule, factor)[0]) + 0.0 if top > -np.inf else -np.inf


def leaves_of(scores: Float32s, rule: int, factor: float, scale: float, leaves: Leaves) -> float:
    for start in range(0, len(scores), _CHUNK):
        weight = log2_weights(scores[start : start + _CHUNK], rule, factor)
        chunk = leaves[start : start + _CHUNK]
        chunk[:] = UNSEEN
        known = ~np.isnan(weight)
        chunk[known] = quantise(weight[known], int(scale))
    return greatest_log2_weight(scores, rule, factor)
