"""Weights by rank, where equal scores must get equal weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from steelyard_server.policies.draw.rows import Float64s


def by_rank(scores: npt.NDArray[np.floating], weights: Float64s) -> Float64s:
    """The weight of each score where the lowest is given weights[0], the next one weights[1] and so on, float64[n].

    Equal scores share theirs evenly, so that no order among them matters. NaN is not allowed.
    """
    if not len(scores):
        return np.empty(0)
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    counts = np.diff(np.append(starts, len(ranked)))
    shared = np.empty(len(ranked))
    shared[order] = np.repeat(np.add.reduceat(weights, starts) / counts, counts)
    return shared
