"""The curves L(n) = e^floor + e^gain · n^-exponent through the losses of groups, by arithmetic that every machine
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
import numpy.typing as npt

from steelyard_server.core.exact import exp, log
from steelyard_server.policies.mix.contract import Float64s

_DELTA = 1e-3
_EXPONENTS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5])
_FLOORS = np.array([0.01, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97, 0.995])
_STARTS = 4
_STEPS = 50
_BOUNDS = np.array([[-60.0, -60.0, 0.0], [100.0, 100.0, 3.0]])
_AT_A_TIME = 64


@dataclass(frozen=True, slots=True, eq=False)
class PowerLaws:
    """L(n) = e^floor + e^gain · n^-exponent of each group, float64[K]; `fitted` bool[K] tells which there are, and
    the others hold 0."""

    floor: Float64s
    gain: Float64s
    exponent: Float64s
    fitted: npt.NDArray[np.bool_]


def fit(n: Float64s, losses: Float64s, weights: Float64s) -> PowerLaws:
    """The curves through float64[K, P] `losses` with `weights` at `n` > 0, float64[P]. A group is fitted where at least
    four losses are above 0 and have a weight. O(K · P · steps · starts): some milliseconds a group for 64 points."""
    found = np.zeros((len(losses), 3))
    known = (losses > 0) & (weights > 0)
    fitted = known.sum(axis=1) >= 4
    logs = log(n)
    last = logs.max(initial=0.0)
    groups = np.flatnonzero(fitted)
    for first in range(0, len(groups), _AT_A_TIME):
        some = groups[first : first + _AT_A_TIME]
        # Relative to the last point the three parameters hardly depend on one another.
        found[some] = _fit_some(logs - last, losses[some], np.where(known[some], weights[some], 0.0))
    # log L = gain - exponent · (log n - last) where it falls.
    found[:, 1] += found[:, 2] * last
    return PowerLaws(found[:, 0], found[:, 1], found[:, 2], fitted)


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """log n relative to the last point, float64[P]; log loss and weight, float64[G, 1, P], 0 where there is none."""

    u: Float64s
    target: Float64s
    weight: Float64s


def _fit_some(u: Float64s, losses: Float64s, weights: Float64s) -> Float64s:
    """Floor, gain at the last point, exponent: float64[G, 3]."""
    known = weights > 0
    target = log(np.where(known, losses, 1.0))
    weight = weights / weights.max(axis=1, keepdims=True)
    data = _Data(u, target[:, None, :], weight[:, None, :])
    starts = _starts(data, known[:, None, :])
    best = np.argsort(_cost(data, starts), axis=1, kind="stable")[:, :_STARTS]
    found = _descend(data, np.take_along_axis(starts, best[:, :, None], axis=1))
    least = np.argmin(_cost(data, found), axis=1)
    return np.asarray(found[np.arange(len(found)), least])


def _starts(data: _Data, known: npt.NDArray[np.bool_]) -> Float64s:
    """The grid: float64[G, S, 3]; the gain is the mean over points of what the exponent and the floor leave for it."""
    exponent, part = (grid.ravel() for grid in np.meshgrid(_EXPONENTS, _FLOORS, indexing="ij"))
    # Not the least of all, and what stands under a floor as a little above it: a wild loss must not shift the grid.
    counts = known.sum(axis=2)
    low = np.sort(np.where(known, data.target, np.inf), axis=2)[:, 0, :]
    low = np.take_along_axis(low, counts // 10, axis=1)
    left = np.maximum(exp(data.target - low[:, :, None]) - part[:, None], 1e-3)
    gains = np.where(known, low[:, :, None] + log(left) + exponent[:, None] * data.u, 0.0)
    gain = gains.sum(axis=2) / counts
    return np.stack(np.broadcast_arrays(low + log(part), gain, exponent), axis=2)


def _parts(data: _Data, parameters: Float64s) -> tuple[Float64s, Float64s]:
    """The error of log L at each point, and the falling part's share of L: float64[G, S, P] both."""
    floor, gain, exponent = parameters[..., :1], parameters[..., 1:2], parameters[..., 2:]
    falling = gain - exponent * data.u
    top = np.maximum(floor, falling)
    low, high = exp(floor - top), exp(falling - top)
    return top + log(low + high) - data.target, high / (low + high)


def _cost(data: _Data, parameters: Float64s) -> Float64s:
    """sum w · huber(error), float64[G, S]."""
    size = np.abs(_parts(data, parameters)[0])
    inside = np.minimum(size, _DELTA)
    return np.asarray((data.weight * inside * (size - 0.5 * inside)).sum(axis=-1))


def _descend(data: _Data, parameters: Float64s) -> Float64s:
    """Damped Gauss-Newton steps from float64[G, S, 3]; each start has its own damping."""
    cost = _cost(data, parameters)
    damping = np.full(cost.shape, 1e-2)
    for _ in range(_STEPS):
        moved = np.clip(parameters + _step(data, parameters, damping), *_BOUNDS)
        there = _cost(data, moved)
        better = there < cost
        parameters = np.where(better[..., None], moved, parameters)
        cost = np.where(better, there, cost)
        damping = np.clip(damping * np.where(better, 0.2, 4.0), 1e-9, 1e9)
    return parameters


def _step(data: _Data, parameters: Float64s, damping: Float64s) -> Float64s:
    """-(J'WJ + damping · diag)^-1 J'W error, float64[G, S, 3], by Cramer's rule."""
    error, share = _parts(data, parameters)
    weight = data.weight * _DELTA / np.maximum(np.abs(error), _DELTA)
    slopes = (1.0 - share, share, -data.u * share)
    weighted = [weight * x for x in slopes]
    a = [[(x * y).sum(axis=-1) for y in slopes] for x in weighted]
    for i in range(3):
        a[i][i] = a[i][i] * (1.0 + damping) + 1e-12
    b = [-(x * error).sum(axis=-1) for x in weighted]
    whole = _determinant(a)
    columns = []
    for j in range(3):
        changed = [[b[i] if k == j else a[i][k] for k in range(3)] for i in range(3)]
        columns.append(np.divide(_determinant(changed), whole, out=np.zeros(whole.shape), where=whole != 0))
    return np.stack(columns, axis=-1)


def _determinant(m: list[list[Float64s]]) -> Float64s:
    """Of 3 × 3 arrays of one shape: that shape."""
    return np.asarray(
        m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1])
        - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
        + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
    )
