"""The arithmetic that mix rules share: shares that sum to 1, from whatever finite numbers came."""

from __future__ import annotations

import numpy as np

from steelyard_server.core.exact import exp
from steelyard_server.policies.mix.contract import Float64s, Int64s


def uniform(groups: int) -> Float64s:
    """float64[groups] that sum to 1."""
    return np.full(groups, 1.0 / max(groups, 1))


def normalised(masses: Float64s) -> Float64s:
    """masses / sum(masses), and equal shares where that sum is 0. The greatest goes to 1 first, so that no sum of
    finite masses overflows."""
    greatest = masses.max(initial=0.0)
    if greatest <= 0:
        return uniform(len(masses))
    scaled = masses / greatest
    return np.asarray(scaled / scaled.sum())


def softmax(exponents: Float64s) -> Float64s:
    """exp(x) / sum(exp(x)) of finite x or -inf, the greatest subtracted first; equal shares where all are -inf."""
    greatest = exponents.max(initial=-np.inf)
    if greatest == -np.inf:
        return uniform(len(exponents))
    return normalised(exp(exponents - greatest))


def with_least(shares: Float64s, least: float) -> Float64s:
    """Shares below `least` raised to it, and the sum brought back to 1."""
    return normalised(np.maximum(shares, least))


def drawable(masses: Float64s, sizes: Int64s) -> Float64s:
    """The masses; or the sizes, where every group that has mass is empty and others are not: a run goes on."""
    return masses if np.any(masses[sizes > 0] > 0) else sizes.astype(np.float64)
