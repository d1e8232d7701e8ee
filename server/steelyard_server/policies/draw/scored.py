"""Ids in proportion to a score column.

The score becomes a weight (transform), the weight an integer mass (a leaf of the tree), and a share `floor` of the
law is spread evenly over all drawable ids. Prioritised replay's p_i ∝ P_i^alpha (Schaul et al. 2016, eq. 1) is
transform "power"; a Boltzmann draw is "softmax".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.core.kernels.scores import FLAT, POWER, SOFTMAX
from steelyard_server.policies.columns import Derived, parse_derived
from steelyard_server.policies.draw.contract import Examples, Float32s
from steelyard_server.policies.draw.engines.local import ByColumn, MassDraw, ScoredDrawer

_LOG2_E = 1.4426950408889634


class Scored(MassDraw):
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
    transform: Literal["identity", "power", "softmax"] = "power"
    """Weight of a score s: s, s^alpha, or exp(s / temperature)."""
    alpha: Annotated[float, Field(ge=0, le=64)] = 1.0
    """Exponent of transform "power"; 0 weighs every known score alike."""
    temperature: Annotated[float, Field(ge=1e-9)] = 1.0
    """Of transform "softmax", in units of the score: the larger, the more uniform."""
    unseen: Literal["max", "mean"] | Annotated[float, Field(ge=0)] = "max"
    """Weight of an example without a score: the greatest that any example has had, the mean one of those that have a
    score now, or that of this score."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of a score ema_SIGNAL: the share of the old mean that stays with each report."""

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
        by = ByColumn(self.score, self.curve, self.unseen, self.floor, self.sampling)
        return ScoredDrawer(by, examples, seed, batch_size, state)

    def objection(self, column: str, values: Float32s) -> str | None:
        if self.transform == "softmax" or column != self.score:
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
