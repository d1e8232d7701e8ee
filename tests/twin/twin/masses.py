"""Scores to integer masses: round(weight of the score * 2^scale), half to even, and within 1..2^32-2.

The exact number is computed with fifty digits and rounded. A server's arithmetic has an error below 1e-14 of the
weight's logarithm; where the exact number lies so close to a half that this decides, the rounding is that of the
documented recipe in doubles, of which only + - * / and powers of two are used.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from decimal import Context, Decimal, localcontext
from typing import Any

MAX_MASS = 2**32 - 2
DIGITS = Context(prec=50, Emin=-(10**9), Emax=10**9)
FARTHEST = 2.0**40
"""Under softmax, weights further out than 2^FARTHEST count as equal."""


def is_known(score: float) -> bool:
    return not math.isnan(score)


def log2_weight(draw: Mapping[str, Any], score: float) -> Decimal | None:
    """log2 of the weight of a known score; None where the weight is 0. A negative score counts as 0."""
    with localcontext(DIGITS):
        if draw["transform"] == "softmax":
            if math.isinf(score):
                return Decimal(math.copysign(FARTHEST, score))
            value = Decimal(score) / Decimal(draw["temperature"]) / Decimal(2).ln()
            return max(min(value, Decimal(FARTHEST)), -Decimal(FARTHEST))
        if draw["transform"] == "power" and draw["alpha"] == 0:
            return Decimal(0)
        if score <= 0:
            return None
        mantissa, exponent = math.frexp(score)
        value = exponent + (Decimal(mantissa).ln() / Decimal(2).ln() if mantissa != 0.5 else Decimal(-1))
        return value * Decimal(draw["alpha"]) if draw["transform"] == "power" else value


@functools.cache
def _mass(transform: str, alpha: float, temperature: float, score: float, scale: int) -> int:
    draw = {"transform": transform, "alpha": alpha, "temperature": temperature}
    log2 = log2_weight(draw, score)
    with localcontext(DIGITS):
        if log2 is None or log2 + scale < -2:
            return 1
        if log2 + scale > 33:
            return MAX_MASS
        exact = Decimal(2) ** (log2 + scale)
        doubt = exact * Decimal("1e-14") * (4 + abs(log2) + abs(scale))
        if abs(exact % 1 - Decimal("0.5")) <= doubt:
            return recipe(recipe_log2_weight(draw, score), scale)
        return max(1, min(MAX_MASS, int(exact.to_integral_value())))


def mass(draw: Mapping[str, Any], score: float, scale: int) -> int:
    """The mass of a known score."""
    return _mass(draw["transform"], draw["alpha"], draw["temperature"], score, scale)


# ---- the recipe in doubles ----


def recipe_log2_weight(draw: Mapping[str, Any], score: float) -> float:
    if draw["transform"] == "softmax":
        wide: float = score * (1.4426950408889634 / draw["temperature"])
        return max(min(wide, FARTHEST), -FARTHEST)
    if draw["transform"] == "power" and draw["alpha"] == 0:
        return 0.0
    value = recipe_log2(score) if score > 0 else -math.inf
    alpha: float = draw["alpha"] if draw["transform"] == "power" else 1.0
    return value * alpha


def recipe(log2: float, scale: int) -> int:
    if log2 == -math.inf:
        return 1
    return max(1, round(min(float(MAX_MASS), recipe_exp2(log2 + float(scale)))))


def recipe_log2(x: float) -> float:
    """s = (m - 1) / (m + 1) for m in [sqrt(1/2), sqrt(2)), and twelve terms of atanh."""
    mantissa, exponent = math.frexp(x)
    if mantissa < 0.7071067811865476:
        mantissa, exponent = mantissa + mantissa, exponent - 1
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return exponent + s * horner([1.0 / (2 * k + 1) for k in range(12)], s * s) * 2.8853900817779268


def recipe_exp2(x: float) -> float:
    """Fifteen terms of the exponential of the fraction, times a power of two."""
    clipped = max(-1200.0, min(1200.0, x))
    whole = round(clipped)
    terms = [1.0]
    for k in range(1, 15):
        terms.append(terms[-1] * 0.6931471805599453 / k)
    try:
        return math.ldexp(horner(terms, clipped - whole), whole)
    except OverflowError:
        return math.inf


def horner(coefficients: list[float], x: float) -> float:
    result = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result
