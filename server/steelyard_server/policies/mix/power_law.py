"""The curve L(n) = e^floor + e^gain · n^-exponent through the losses of one group, by arithmetic that every machine
rounds alike.

What is made small is sum_i w_i · huber(log L(n_i) - log loss_i) with delta = 1e-3, which is nearly the sum of absolute
errors, so that a few wild losses move nothing. The starts are a grid of exponents and floors, for each of which the
gain follows; the best four go through damped Gauss-Newton steps (Levenberg and Marquardt's, the Huber loss as weights
of the squares), each taken only where it lowers the sum. L-BFGS from every start, which is customary here, would need
an optimiser; where the losses determine the curve, the same minimum is found. Where they do not (noise hides how far
the curve still falls), the sum is as low to some parts in a thousand, at parameters that may be others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard_server.core.exact import exp, log
from steelyard_server.policies.mix.contract import Float64s

_DELTA = 1e-3
_EXPONENTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5)
_FLOORS = (0.01, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97, 0.995)
_STARTS = 4
_STEPS = 60
_BOUNDS = ((-60.0, 100.0), (-60.0, 100.0), (0.0, 3.0))


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """L(n) = e^floor + e^gain · n^-exponent."""

    floor: float
    gain: float
    exponent: float


def fit(n: Float64s, losses: Float64s, weights: Float64s) -> PowerLaw | None:
    """The curve through float64[P] `losses` at `n` > 0; None where fewer than four are above 0 with weight.

    O(steps · starts · P): some milliseconds for 64 points.
    """
    known = (losses > 0) & (weights > 0)
    if int(known.sum()) < 4:
        return None
    logs, target = log(n[known]), log(losses[known])
    # Relative to the last point the three parameters hardly depend on one another.
    data = _Data(logs - logs.max(), target, weights[known] / weights[known].max())
    starts = _starts(data)
    order = np.argsort(_cost(data, starts), kind="stable")
    found = _descend(data, starts[order[:_STARTS]])
    best = found[int(np.argmin(_cost(data, found)))]
    return PowerLaw(float(best[0]), float(best[1] + best[2] * logs.max()), float(best[2]))


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """log n relative to the last point, log loss, weight: float64[P]."""

    u: Float64s
    target: Float64s
    weight: Float64s


def _starts(data: _Data) -> Float64s:
    """The grid: float64[S, 3] of floor, gain at the last point, exponent."""
    exponent = np.repeat(_EXPONENTS, len(_FLOORS))
    # Not the least of all, and what stands under a floor as a little above it: a wild loss must not shift the grid.
    low = np.sort(data.target)[len(data.target) // 10]
    floor = low + log(np.tile(_FLOORS, len(_EXPONENTS)))
    left = np.maximum(exp(data.target[None, :] - low) - exp(floor - low)[:, None], 1e-3)
    gain = (low + log(left) + exponent[:, None] * data.u).mean(axis=1)
    return np.stack([floor, gain, exponent], axis=1)


def _parts(data: _Data, parameters: Float64s) -> tuple[Float64s, Float64s]:
    """The error of log L at each point, and the falling part's share of L: float64[S, P] both."""
    floor, gain, exponent = parameters[:, :1], parameters[:, 1:2], parameters[:, 2:]
    falling = gain - exponent * data.u
    top = np.maximum(floor, falling)
    low, high = exp(floor - top), exp(falling - top)
    return top + log(low + high) - data.target, high / (low + high)


def _cost(data: _Data, parameters: Float64s) -> Float64s:
    """sum w · huber(error), float64[S]."""
    size = np.abs(_parts(data, parameters)[0])
    inside = np.minimum(size, _DELTA)
    return np.asarray((data.weight * inside * (size - 0.5 * inside)).sum(axis=1))


def _descend(data: _Data, parameters: Float64s) -> Float64s:
    """Damped Gauss-Newton steps from float64[S, 3]; each start has its own damping."""
    damping, cost = np.full(len(parameters), 1e-2), _cost(data, parameters)
    for _ in range(_STEPS):
        moved = parameters + _step(data, parameters, damping)
        moved = np.stack([np.clip(moved[:, i], *bounds) for i, bounds in enumerate(_BOUNDS)], axis=1)
        there = _cost(data, moved)
        better = there < cost
        parameters = np.where(better[:, None], moved, parameters)
        cost = np.where(better, there, cost)
        damping = np.clip(damping * np.where(better, 0.2, 4.0), 1e-9, 1e9)
    return parameters


def _step(data: _Data, parameters: Float64s, damping: Float64s) -> Float64s:
    """-(J'WJ + damping · diag)^-1 J'W error, float64[S, 3], by Cramer's rule."""
    error, share = _parts(data, parameters)
    weight = data.weight * _DELTA / np.maximum(np.abs(error), _DELTA)
    slopes = (1.0 - share, share, -data.u * share)
    a = [[(weight * x * y).sum(axis=1) for y in slopes] for x in slopes]
    for i in range(3):
        a[i][i] = a[i][i] * (1.0 + damping) + 1e-12
    b = [-(weight * x * error).sum(axis=1) for x in slopes]
    whole = _determinant(a)
    usable = whole != 0
    columns = []
    for j in range(3):
        changed = [[b[i] if k == j else a[i][k] for k in range(3)] for i in range(3)]
        columns.append(np.divide(_determinant(changed), whole, out=np.zeros(len(whole)), where=usable))
    return np.stack(columns, axis=1)


def _determinant(m: list[list[Float64s]]) -> Float64s:
    """Of 3 × 3 arrays float64[S]: float64[S]."""
    return np.asarray(
        m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1])
        - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
        + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
    )
