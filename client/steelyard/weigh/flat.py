"""A batch as the rules see it that only the server can weigh by: flat NumPy arrays in double precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard.weigh.namespace import counted
from steelyard.weigh.rule import Array, Context, Rule, server_only

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_LIMIT = 1e100


class Flat:
    """The losses and columns of one global batch, position by position.

    `losses` is float64[m], cut to +-1e100 so that sums and products stay finite; `valid` is bool[m], the positions
    with a finite loss that are not padding; `n` counts those that are not padding.
    """

    def __init__(self, rule: Rule, losses: Array, context: Context) -> None:
        """TypeError: not a numpy array. ValueError: arrays that do not fit together."""
        if not isinstance(losses, np.ndarray):
            raise TypeError(
                f"{rule.method}: expected a numpy array, got {type(losses).__name__}: {server_only(rule)}"
            )
        self._method = rule.method
        self._context = context
        self._shape = losses.shape
        self._dtype = np.float64 if losses.dtype == np.float64 else np.float32
        mask, _ = counted(losses, context.mask)
        real = np.ones(losses.size, np.bool_) if mask is None else np.ravel(mask)
        values = np.ravel(losses).astype(np.float64)
        self.n = int(np.sum(real))
        self.valid: Flags = real & np.isfinite(values)
        self.losses: Floats = bounded(np.where(self.valid, values, 0.0))

    def __len__(self) -> int:
        return self.losses.size

    def column(self, name: str) -> Floats:
        """float64[m]: a column or signal at the positions, cut as the losses are; NaN where it is not known.

        ValueError: the context lacks it.
        """
        if name not in self._context.columns:
            came = ", ".join(map(repr, self._context.columns)) or "no columns"
            raise ValueError(f"{self._method}: expected the column {name!r}, got {came}")
        values = np.asarray(self._context.columns[name])
        if values.shape != self._shape:
            raise ValueError(
                f"{self._method}: expected {name!r} of shape {self._shape} as the losses, got {values.shape}"
            )
        values = np.ravel(values).astype(np.float64)
        return np.where(np.isfinite(values), bounded(values), np.nan)

    def past(self, name: str, without: npt.ArrayLike) -> Floats:
        """What the rule remembers by that name; `without` it at the first step."""
        past: Mapping[str, Any] = self._context.past or {}
        return np.asarray(past.get(name, without), np.float64)

    def chosen(self, chosen: Flags) -> Array:
        """The weights n/k of the k positions that are chosen and valid, 0 for the others."""
        chosen = chosen & self.valid
        return self.shaped(np.where(chosen, self.n / max(int(np.sum(chosen)), 1), 0.0))

    def shaped(self, weights: Floats) -> Array:
        """Weights float64[m] in the shape and precision that a rule returns; 0 where the position is not valid."""
        return np.where(self.valid, weights, 0.0).reshape(self._shape).astype(self._dtype)


def part(share: float, whole: int) -> int:
    """How many a share of so many is: rounded down, but at least 1. What misses an integer by rounding is that."""
    return max(int(np.floor(share * whole + 1e-3)), 1)


def highest(scores: Floats, valid: Flags, count: int) -> Flags:
    """bool[m]: the `count` valid positions of highest score; of equal ones the earlier."""
    order = np.argsort(np.where(valid, -scores, np.inf), kind="stable")[:count]
    chosen = np.zeros(scores.size, np.bool_)
    chosen[order] = True
    return chosen & valid


def bounded(values: Floats) -> Floats:
    """Values cut to +-1e100; NaN stays."""
    return np.clip(values, -_LIMIT, _LIMIT)
