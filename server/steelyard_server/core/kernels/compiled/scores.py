"""From scores to leaves: the arithmetic of `core.exact`, operation by operation, on one score at a time."""

from __future__ import annotations

import numpy as np
from numba import types

from steelyard_server.core import exact
from steelyard_server.core.kernels import layout
from steelyard_server.core.kernels.compiled.instructions import horner
from steelyard_server.core.kernels.compiled.machine import (
    COUNT,
    FLOAT,
    LEAVES,
    READ_IDS,
    READ_SCORES,
    inlined,
    kernel,
)
from steelyard_server.core.kernels.contract import Float32s, Ids, Leaves
from steelyard_server.core.kernels.scores import FLAT, MAX_LOG2, POWER

_UNSEEN = np.uint32(layout.UNSEEN)
_MAX_LEAF = float(exact.MAX_LEAF)
_atanh = horner(exact.ATANH)
_exp2 = horner(exact.EXP2)
_TWO_OVER_LN2 = exact.TWO_OVER_LN2
_SQRT_HALF = exact.SQRT_HALF
_MANTISSA = np.uint64((1 << 52) - 1)
_HALF = np.uint64(1022 << 52)
_MANTISSA_BITS = np.uint64(52)
_BIAS = np.int64(1022)
_EXPONENT_BIAS = np.int64(1023)


@inlined
def _log2(x: float) -> float:
    """exact.log2 of a number that is 0 or more; not of subnormal numbers, which no float32 is as a float64."""
    bits = np.float64(x).view(np.uint64)
    mantissa = np.uint64((bits & _MANTISSA) | _HALF).view(np.float64)
    exponent = np.int64(bits >> _MANTISSA_BITS) - _BIAS
    low = mantissa < _SQRT_HALF
    mantissa = mantissa + mantissa if low else mantissa
    whole = np.float64(exponent - np.int64(low))
    s = (mantissa - 1.0) / (mantissa + 1.0)
    result = whole + s * _atanh(s * s) * _TWO_OVER_LN2
    result = -np.inf if x == 0.0 else result
    return np.inf if x == np.inf else result


@inlined
def _quantised(weight: float) -> np.uint32:
    """exact.quantise of a weight with its scale added. Past -8 and 40 the leaf is the least or the greatest anyway."""
    clipped = min(max(weight, -8.0), 40.0)
    whole = np.rint(clipped)
    power = np.uint64((np.int64(whole) + _EXPONENT_BIAS) << 52).view(np.float64)
    mass = np.rint(min(_exp2(clipped - whole) * power, _MAX_LEAF))
    return np.uint32(max(mass, 1.0))


@inlined
def _weight_of(score: float, rule: int, factor: float) -> float:
    """log2 of the weight."""
    if rule == POWER:
        return _log2(max(score, 0.0)) * factor
    if rule == FLAT:
        return 0.0
    return min(max(score * factor, -MAX_LOG2), MAX_LOG2)


@inlined
def _leaf_of(score: float, rule: int, factor: float, scale: float) -> np.uint32:
    known = score == score
    leaf = _quantised(_weight_of(score if known else 0.0, rule, factor) + scale)
    return leaf if known else _UNSEEN


@kernel(types.float64, READ_SCORES, COUNT, FLOAT, FLOAT, LEAVES)
def leaves_of(scores: Float32s, rule: int, factor: float, scale: float, leaves: Leaves) -> float:
    top = np.float32(-np.inf)
    for i in range(scores.size):
        score = scores[i]
        leaves[i] = _leaf_of(np.float64(score), rule, factor, scale)
        top = score if score > top else top
    return _weight_of(np.float64(top), rule, factor) if top > np.float32(-np.inf) else -np.inf


@kernel(types.float64, READ_SCORES, READ_IDS, COUNT, FLOAT, FLOAT, LEAVES)
def leaves_at(scores: Float32s, ids: Ids, rule: int, factor: float, scale: float, leaves: Leaves) -> float:
    top = np.float32(-np.inf)
    for i in range(ids.size):
        score = scores[np.uint64(ids[i])]
        leaves[i] = _leaf_of(np.float64(score), rule, factor, scale)
        top = score if score > top else top
    return _weight_of(np.float64(top), rule, factor) if top > np.float32(-np.inf) else -np.inf
