"""From scores to leaves: the arithmetic of `core.exact`, operation by operation, on a block of scores at a time."""

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
    READ_SCORES,
    inlined,
    kernel,
)
from steelyard_server.core.kernels.contract import Float32s, Float64s, Leaves
from steelyard_server.core.kernels.scores import FLAT, MAX_LOG2, POWER

_UNSEEN = np.uint32(layout.UNSEEN)
_NO_LEAF = np.uint32(0)
# Scores worked on at a time: they stay in the nearest cache from one loop to the next.
BLOCK = 512
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
def _weigh(values: Float64s, count: int, rule: int, factor: float) -> None:
    """Makes scores into log2 of their weights, in place; what becomes of NaN is anything. Each loop does one thing: so
    the compiler takes eight at a time."""
    if rule == POWER:
        for i in range(count):
            score = values[i]
            values[i] = _log2(score if score > 0.0 else 0.0) * factor
    elif rule == FLAT:
        for i in range(count):
            values[i] = 0.0
    else:
        for i in range(count):
            weight = values[i] * factor
            weight = weight if weight > -MAX_LOG2 else -MAX_LOG2
            values[i] = weight if weight < MAX_LOG2 else MAX_LOG2


@inlined
def fill(
    values: Float64s, count: int, rule: int, factor: float, scale: float, leaves: Leaves, start: int
) -> None:
    """The leaves from `start` on, of `count` scores, which it spoils."""
    for i in range(count):
        leaves[start + i] = _UNSEEN if np.isnan(values[i]) else _NO_LEAF
    _weigh(values, count, rule, factor)
    for i in range(count):
        leaf = _quantised(values[i] + scale)
        leaves[start + i] = _UNSEEN if leaves[start + i] == _UNSEEN else leaf


@inlined
def greatest(top: float, rule: int, factor: float) -> float:
    """log2 of the weight of the greatest score."""
    if top == -np.inf:
        return -np.inf
    one = np.full(1, top)
    _weigh(one, 1, rule, factor)
    # Which of the zeros is the greatest score is chance: -0 becomes 0.
    return float(one[0]) + 0.0


@kernel(types.float64, READ_SCORES, COUNT, FLOAT, FLOAT, LEAVES)
def leaves_of(scores: Float32s, rule: int, factor: float, scale: float, leaves: Leaves) -> float:
    top, values = -np.inf, np.empty(BLOCK, np.float64)
    for start in range(0, scores.size, BLOCK):
        count = min(BLOCK, scores.size - start)
        known = 0
        for i in range(count):
            score = np.float64(scores[start + i])
            values[i] = score
            known += not np.isnan(score)
            top = score if score > top else top
        if known:
            fill(values, count, rule, factor, scale, leaves, start)
        else:
            # Mostly so in a run that is new.
            leaves[start : start + count] = _UNSEEN
    return greatest(top, rule, factor)
