"""Logarithm, exponential, power and leaf quantisation that give the same bytes on every machine.

NumPy's own log2 and exp2 choose a kernel by the processor and differ in the last bit between two of them;
one such bit in one leaf would make two servers draw different batches. Here only + - * /, comparison, rint,
frexp and ldexp are used, each an array at a time, which IEEE 754 fixes to the last bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_LEAF = 2**32 - 2
"""The largest leaf that is a mass; one more stands for an example never reported (tree.UNSEEN)."""

_LN2 = 0.6931471805599453
_LOG2_E = 1.4426950408889634
TWO_OVER_LN2 = 2.8853900817779268
SQRT_HALF = 0.7071067811865476
# atanh(s)/s = sum of s**2k / (2k+1). |s| <= 0.1716, so the first term left out is below 1e-18 of the whole.
ATANH = tuple(1.0 / (2 * k + 1) for k in range(12))


def _exp2_coefficients() -> tuple[float, ...]:
    """ln(2)**k / k! for k = 0..14: at |x| <= 1/2 the first term left out is below 1e-18."""
    terms = [1.0]
    for k in range(1, 15):
        terms.append(terms[-1] * _LN2 / k)
    return tuple(terms)


EXP2 = _exp2_coefficients()

_Floats = npt.NDArray[np.float64]


def log2(x: _Floats) -> _Floats:
    """Base-2 logarithm of float64[n], relative error below 1e-14; -inf at 0, inf at inf, NaN below 0."""
    mantissa, exponent = np.frexp(x)
    # The mantissa moves from [1/2, 1) to [sqrt(1/2), sqrt(2)), so that near x = 1 the exponent is 0 and
    # nothing cancels.
    low = mantissa < SQRT_HALF
    mantissa = np.where(low, mantissa + mantissa, mantissa)
    whole = exponent - low.astype(exponent.dtype)
    finite = (x > 0) & (x < np.inf)
    mantissa = np.where(finite, mantissa, 1.0)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    result = whole + s * _horner(ATANH, s * s) * TWO_OVER_LN2
    special = np.where(x == 0, -np.inf, np.where(x == np.inf, np.inf, np.nan))
    return np.where(finite, result, special)


def exp2(x: _Floats) -> _Floats:
    """2**x of float64[n], relative error below 1e-14 where that is a normal number. exp2(-inf) is 0."""
    # Past these bounds the result is 0 or inf anyway; clipped, the exponent is an integer that ldexp takes.
    clipped = np.where(np.isnan(x), 0.0, np.clip(x, -1200.0, 1200.0))
    whole = np.rint(clipped)
    with np.errstate(over="ignore", under="ignore"):
        result = np.ldexp(_horner(EXP2, clipped - whole), whole.astype(np.int32))
    return np.where(np.isnan(x), np.nan, result)


def exp(x: _Floats) -> _Floats:
    """e**x of float64[n]; relative error below 1e-12 where |x| < 700."""
    return exp2(x * _LOG2_E)


def log(x: _Floats) -> _Floats:
    """Natural logarithm of float64[n]; -inf at 0, inf at inf, NaN below 0."""
    return log2(x) * _LN2


def power(x: _Floats, exponent: float) -> _Floats:
    """x**exponent of float64[n] >= 0; 0**0 is 1, NaN below 0."""
    if exponent == 0.0:
        return np.where(np.isnan(x) | (x < 0), np.nan, 1.0)
    return exp2(log2(x) * exponent)


def quantise(log2_weight: _Floats, scale: int) -> npt.NDArray[np.uint32]:
    """Leaves of examples that may be drawn: 2**(log2_weight + scale), float64[n] -> uint32[n].

    Rounded half to even and clipped to 1..2**32-2, so that a leaf is never 0 (may not be drawn) and never
    UNSEEN. -inf gives 1, inf gives 2**32-2. ValueError at a NaN.
    """
    invalid = np.isnan(log2_weight)
    if np.any(invalid):
        raise ValueError(
            f"expected log2 weights without NaN, got {int(invalid.sum())} NaN of {log2_weight.size}"
        )
    masses = np.rint(np.minimum(exp2(log2_weight + float(scale)), float(MAX_LEAF)))
    return np.maximum(masses, 1.0).astype(np.uint32)


def _horner(coefficients: tuple[float, ...], x: _Floats) -> _Floats:
    """sum of coefficients[k] * x**k, highest power first."""
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result *= x
        result += coefficient
    return result
