"""Ids in proportion to a function of a score column.

The score becomes a weight (transform), the weight an integer mass (a leaf of the tree), and a share `floor` of the
law is spread evenly over all drawable ids.

    identity     s
    power        s^alpha                        prioritised replay's p_i ∝ P_i^alpha, eq. 1
    softmax      exp(s / temperature)           a Boltzmann draw
    rank         rank^-alpha, the highest score having rank 1
    percentile   percentile^alpha, where that of the k-th lowest of n is (k - 1/2) / n
    gumbel       the share `keep` with the highest s / temperature + Gumbel(0, 1), all alike: at temperature t these are
                 drawn from the Boltzmann law without replacement (the Gumbel top-k trick)

The first three follow each report at once. The others look at all scores together, so they are computed anew every
`refresh_steps` steps only; equal scores share the weights of their ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.core import exact
from steelyard_server.core.kernels.scores import FLAT, POWER, SOFTMAX
from steelyard_server.policies.columns import Derived, parse_derived
from steelyard_server.policies.draw.contract import Drawer, Examples, Float32s
from steelyard_server.policies.draw.engines.local import ByColumn, ScoredDrawer
from steelyard_server.policies.draw.engines.refreshed import RefreshedDraw
from steelyard_server.policies.draw.ranks import by_rank
from steelyard_server.policies.draw.rows import Float64s, Moment, Rows

_LOG2_E = 1.4426950408889634


class Scored(RefreshedDraw):
    """Draws ids by a score column; never-reported examples take the mass that `unseen` states."""

    source: ClassVar[Source] = Source(
        "Prioritized Experience Replay (Schaul et al., 2016), for the power of a score",
        "eq. 1, proportional form",
    )
    never_reported: ClassVar[str] = (
        "As `unseen` states: the greatest mass that any had, the mean one, or that of a score."
    )

    method: Literal["scored"] = "scored"
    score: str = Field(default="last_loss", min_length=1, max_length=128)
    """A derived column (last_loss, mean_loss, ema_loss, count_loss, or of another signal) or a static one."""
    transform: Literal["identity", "power", "softmax", "rank", "percentile", "gumbel"] = "power"
    """Weight of a score s: s, s^alpha, exp(s / temperature), its rank^-alpha, its percentile^alpha, or whether it is
    among the highest with noise."""
    alpha: Annotated[float, Field(ge=0, le=64)] = 1.0
    """Exponent of the transforms "power", "rank" and "percentile"; 0 weighs every known score alike."""
    temperature: Annotated[float, Field(ge=1e-9)] = 1.0
    """Of the transforms "softmax" and "gumbel", in units of the score: the larger, the more uniform."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the drawable examples that transform 'gumbel' keeps until the next refresh."""
    unseen: Literal["max", "mean"] | Annotated[float, Field(ge=0)] = "max"
    """Weight of an example without a score: the greatest that any example has had, the mean one of those that have a
    score now, or that of this score. Transforms that look at all scores give it the highest score of that time, the
    mean score, or this one."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of a score ema_SIGNAL: the share of the old mean that stays with each report."""

    @property
    def derived(self) -> tuple[Derived, ...]:
        derived = parse_derived(self.score, decay=self.ema_decay)
        return (derived,) if derived else ()

    @property
    def static(self) -> tuple[str, ...]:
        return () if self.derived else (self.score,)

    @property
    def own(self) -> tuple[str, ...]:
        return super().own if self._looks_at_all else ()

    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> Drawer:
        if self._looks_at_all:
            return super().drawer(examples, seed=seed, batch_size=batch_size, state=state)
        by = ByColumn(self.score, self.curve, self.unseen, self.floor, self.sampling)
        return ScoredDrawer(by, examples, seed, batch_size, state)

    def objection(self, column: str, values: Float32s) -> str | None:
        if self.transform not in ("identity", "power") or column != self.score:
            return None
        # fmin passes NaN over.
        if not len(values) or not np.fmin.reduce(values) < 0:
            return None
        at = int(np.flatnonzero(values < 0)[0])
        return (
            f"expected non-negative values for {column}, which transform {self.transform!r} turns into masses; "
            f"got {values[at]:g} at position {at} (transform 'softmax' takes any finite value)"
        )

    @property
    def curve(self) -> tuple[int, float]:
        """How a score becomes a weight, in the terms of the kernels (core.kernels.scores)."""
        if self.transform == "softmax":
            return SOFTMAX, _LOG2_E / self.temperature
        if self.transform == "identity":
            return POWER, 1.0
        # 0^0 is 1: every known score weighs the same.
        return (POWER, self.alpha) if self.alpha else (FLAT, 0.0)

    def weights(self, rows: Rows, moment: Moment) -> Float64s:
        """Those of the transforms that look at all scores."""
        live = np.flatnonzero(rows.live)
        scores = self._with_unseen(rows[self.score][live].astype(np.float64))
        weights = np.zeros(rows.size)
        places = np.arange(len(live), dtype=np.float64)
        if self.transform == "rank":
            weights[live] = by_rank(scores, exact.power(len(live) - places, -self.alpha))
        elif self.transform == "percentile":
            weights[live] = by_rank(scores, exact.power((places + 0.5) / max(len(live), 1), self.alpha))
        else:
            # Lots for all rows, so that those of one do not depend on which others are retired.
            keys = scores / self.temperature + moment.gumbel(rows.size)[live]
            kept = math.ceil(self.keep * len(live))
            weights[live[np.argsort(-keys, kind="stable")[:kept]]] = 1.0
        return weights

    @property
    def _looks_at_all(self) -> bool:
        return self.transform in ("rank", "percentile", "gumbel")

    def _with_unseen(self, scores: Float64s) -> Float64s:
        """The scores, with what `unseen` says in place of NaN; all 0 where none is known."""
        known = scores[~np.isnan(scores)]
        if not len(known):
            return np.zeros(len(scores))
        if self.unseen == "max":
            instead = float(known.max())
        elif self.unseen == "mean":
            instead = float(np.mean(known))
        else:
            instead = float(self.unseen)
        return np.where(np.isnan(scores), instead, scores)
