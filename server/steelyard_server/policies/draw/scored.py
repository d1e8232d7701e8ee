"""Ids in proportion to a score column.

The score becomes a weight (transform), the weight an integer mass (a leaf of the tree), and a share `floor` of the
law is spread evenly over all drawable ids. Prioritised replay's p_i ∝ P_i^alpha (Schaul et al. 2016, eq. 1) is
transform "power"; a Boltzmann draw is "softmax".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from steelyard_server.core.exact import log2, quantise
from steelyard_server.core.random import Purpose, bits
from steelyard_server.core.sampling import Sampling, law_for, sample
from steelyard_server.core.tree import UNSEEN, Law, MassTree
from steelyard_server.policies.columns import Derived, parse_derived
from steelyard_server.policies.draw.contract import Draw, Drawer, Drawn, Examples, Float32s, Ids

Float64s = npt.NDArray[np.float64]

_LOG2_E = 1.4426950408889634
# After a rebuild the greatest weight has this many bits; above it is room for greater ones.
_TOP_BITS = 28
_MOST_BITS = 31.5
# Below this mean leaf, rounding to whole quanta would show; the leaves are then rebuilt at a finer scale.
_COARSE_MEAN = 1 << 12


class Scored(Draw):
    """Draws ids by a score column; never-reported examples take the mass that `unseen` states."""

    method: Literal["scored"] = "scored"
    score: str = Field(default="last_loss", min_length=1, max_length=128)
    """A derived column (last_loss, mean_loss, ema_loss, count_loss, or of another signal) or a static one."""
    transform: Literal["identity", "power", "softmax"] = "power"
    """Weight of a score s: s, s^alpha, or exp(s / temperature)."""
    alpha: Annotated[float, Field(ge=0, le=64)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the law that is uniform over the drawable ids."""
    sampling: Sampling = Sampling.DISTINCT
    unseen: Literal["max", "mean"] | Annotated[float, Field(ge=0)] = "max"
    """Mass of an example without a score: the greatest weight seen so far, the mean one, or that of this score."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9

    @property
    def derived(self) -> tuple[Derived, ...]:
        derived = parse_derived(self.score, decay=self.ema_decay)
        return (derived,) if derived else ()

    @property
    def static(self) -> tuple[str, ...]:
        return () if self.derived else (self.score,)

    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> ScoredDrawer:
        return ScoredDrawer(self, examples, seed, batch_size, state)

    def objection(self, column: str, values: Float32s) -> str | None:
        if self.transform == "softmax" or column != self.score:
            return None
        negative = np.flatnonzero(values < 0)
        if not len(negative):
            return None
        at = int(negative[0])
        return (
            f"expected non-negative values for {column}, which transform {self.transform!r} turns into masses; "
            f"got {values[at]:g} at position {at} (transform 'softmax' takes any finite value)"
        )

    def too_small(self, drawable: int, batch_size: int) -> str | None:
        if self.sampling is Sampling.DISTINCT and drawable < batch_size:
            return f"sampling 'distinct' needs at least batch_size = {batch_size} drawable examples, got {drawable}"
        return super().too_small(drawable, batch_size)

    def log2_weight(self, scores: npt.NDArray[np.floating[Any]]) -> Float64s:
        """log2 of the weight of each score; NaN where there is no score."""
        values = scores.astype(np.float64)
        if self.transform == "softmax":
            return values * (_LOG2_E / self.temperature)
        known = ~np.isnan(values)
        result = np.full(values.shape, np.nan)
        result[known] = log2(values[known])
        if self.transform == "power":
            # 0^0 is 1: with alpha 0 every known score weighs the same.
            result = np.where(known, 0.0, np.nan) if self.alpha == 0 else result * self.alpha
        return result


class _Scale(BaseModel):
    """What the leaves cannot tell. A leaf is round(weight · 2^scale); all leaves have the same scale."""

    model_config = ConfigDict(extra="forbid")

    scale: int = _TOP_BITS
    top: float | None = None
    """The greatest log2 weight seen."""
    coarse_below: int = 0
    """Rebuild at a finer scale when the mass falls below this."""


class ScoredDrawer(Drawer):
    def __init__(
        self, draw: Scored, examples: Examples, seed: int, batch_size: int, state: Mapping[str, Any] | None
    ) -> None:
        self._draw = draw
        self._examples = examples
        self._seed = seed
        self._batch_size = batch_size
        if state is None:
            self._scale = _Scale()
            self._raise_top(self._examples.columns[draw.score])
            self._fit_scale()
        else:
            self._scale = _Scale.model_validate(state)
        self._tree = self._build()
        if state is None:
            self._scale.coarse_below = self._coarse_mass()

    def draw(self, step: int) -> Drawn:
        order = bits(self._seed, Purpose.ORDER, step)
        chosen = sample(
            self._tree,
            self._law(),
            self._batch_size,
            self._draw.sampling,
            bits(self._seed, Purpose.DRAW, step),
            order,
        )
        return Drawn(chosen.ids, chosen.probability, 1.0 / self._tree.live)

    def changed(self, ids: Ids) -> None:
        ids = ids[self._tree.leaves(ids) != 0]
        self._raise_top(self._examples.columns[self._draw.score][ids])
        if self._overflows():
            self._fit_scale()
            self._rebuild()
        else:
            self._tree.set(ids, self._leaves(ids))
            if self._tree.mass < self._scale.coarse_below:
                self._refine()

    def grew(self) -> None:
        new = np.arange(self._tree.size, self._examples.size, dtype=np.int64)
        self._tree.append(self._leaves(new))

    def retired(self, ids: Ids) -> None:
        self._tree.set(ids, np.zeros(len(ids), np.uint32))

    def get_state(self) -> Mapping[str, Any]:
        return self._scale.model_dump(mode="json")

    def draw_state(self) -> Mapping[str, Any]:
        return {}

    def set_draw_state(self, state: Mapping[str, Any]) -> None:
        pass

    def effective_sample_ratio(self) -> float:
        law = self._law()
        total = self._tree.total(law)
        return float(total) ** 2 / (self._tree.live * self._tree.sum_of_squares(law)) if total else math.nan

    @property
    def drawable(self) -> int:
        return self._tree.live

    @property
    def never_reported(self) -> int | None:
        return self._tree.unseen

    def check(self) -> None:
        self._tree.check()
        expected = self._build().all_leaves()
        assert np.array_equal(expected, self._tree.all_leaves()), "leaves differ from the score column"

    def _law(self) -> Law:
        return law_for(self._tree, self._unseen_mass(), self._draw.floor)

    def _unseen_mass(self) -> int:
        unseen = self._draw.unseen
        seen = self._tree.live - self._tree.unseen
        if unseen == "mean" and seen:
            return max(1, self._tree.mass // seen)
        if isinstance(unseen, float):
            return int(quantise(self._draw.log2_weight(np.array([unseen])), self._scale.scale)[0])
        top = 0.0 if self._scale.top is None else self._scale.top
        return int(quantise(np.array([top]), self._scale.scale)[0])

    def _leaves(self, ids: Ids) -> npt.NDArray[np.uint32]:
        weight = self._draw.log2_weight(self._examples.columns[self._draw.score][ids])
        leaves = np.full(len(ids), UNSEEN, np.uint32)
        known = ~np.isnan(weight)
        leaves[known] = quantise(weight[known], self._scale.scale)
        return leaves

    def _build(self) -> MassTree:
        leaves = np.empty(self._examples.size, np.uint32)
        for start in range(0, self._examples.size, 1 << 20):
            ids = np.arange(start, min(start + (1 << 20), self._examples.size), dtype=np.int64)
            leaves[ids] = self._leaves(ids)
        leaves[self._examples.retired] = 0
        return MassTree(leaves)

    def _rebuild(self) -> None:
        self._tree = self._build()
        self._scale.coarse_below = self._coarse_mass()

    def _raise_top(self, scores: Float32s) -> None:
        known = scores[~np.isnan(scores)]
        if not len(known):
            return
        # The transforms are monotone, so the greatest score has the greatest weight.
        top = float(self._draw.log2_weight(np.array([known.max()]))[0])
        if top > -math.inf and (self._scale.top is None or top > self._scale.top):
            self._scale.top = top

    def _overflows(self) -> bool:
        return self._scale.top is not None and self._scale.top + self._scale.scale > _MOST_BITS

    def _fit_scale(self) -> None:
        if self._scale.top is not None:
            self._scale.scale = _TOP_BITS - math.ceil(self._scale.top)

    def _coarse_mass(self) -> int:
        return _COARSE_MEAN * max(0, self._tree.live - self._tree.unseen)

    def _refine(self) -> None:
        """Rebuilds at the scale that today's greatest weight allows; if that gains nothing, waits for less mass."""
        scores = self._examples.columns[self._draw.score]
        known = scores[~np.isnan(scores)]
        before = self._scale.scale
        self._scale.top = None
        self._raise_top(known)
        self._fit_scale()
        if self._scale.scale > before:
            self._tree = self._build()
        else:
            self._scale.scale = before
        self._scale.coarse_below = min(self._coarse_mass(), self._tree.mass // 4)
