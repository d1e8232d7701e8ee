"""Prioritised experience replay: examples with a high loss come more often.

    proportional   p_i = (1 - u) P_i^alpha / sum_j P_j^alpha + u / N       P_i: the last loss; u: `floor`
    rank           p_i = (1 - u) R_i / sum_j R_j + u / N,  R_i = rank^-alpha, the highest loss having rank 1

The weights that undo it, (1 / (N p_i))^beta, are the weigh rule 'importance'.

Source: Schaul et al. 2016; alpha 0.6, u 0.001, the treatment of new examples and 0^alpha = 0 as in dqn_zoo's
replay.py, whose alpha 0.6 is that of the proportional form. The form by rank with alpha 0.7 is as remembered from the
paper.

Traps, and what differs: a replay buffer stores the maximum in a new item once, here an example that was never
reported weighs as much as the greatest priority ever seen until it is reported (1 before any is). A priority of 0 keeps
the least mass there is, some 2^-28 of the greatest, which `floor` exceeds by far. Priorities are the losses as they
were reported: a signed error is to be reported as its absolute value, since a negative one counts as 0. The form by
rank sorts every `refresh_steps` steps, and equal losses share the weights of their ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.core import exact
from steelyard_server.core.kernels.scores import FLAT, POWER
from steelyard_server.core.sampling import Sampling
from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw.contract import Drawer, Examples
from steelyard_server.policies.draw.engines.local import MAX_FLOOR, ByColumn, ScoredDrawer
from steelyard_server.policies.draw.engines.refreshed import RefreshedDraw
from steelyard_server.policies.draw.ranks import by_rank
from steelyard_server.policies.draw.rows import Float64s, Moment, Rows

_ALPHAS = {"proportional": 0.6, "rank": 0.7}


class Per(RefreshedDraw):
    """Prioritised experience replay, proportional or by rank."""

    source: ClassVar[Source] = Source(
        "Prioritized Experience Replay (Schaul et al., 2016)",
        "dqn_zoo replay.py; the form by rank as remembered from the paper",
    )
    never_reported: ClassVar[str] = (
        "The greatest priority that any example ever had, 1 at first; by rank, the first ranks."
    )

    method: Literal["per"] = "per"
    signal: str = Field(default="loss", min_length=1, max_length=64)
    """The reported signal whose last value is the priority."""
    form: Literal["proportional", "rank"] = "proportional"
    """Whether the priorities themselves count or their ranks alone."""
    alpha: Annotated[float, Field(ge=0, le=64)] | None = None
    """How much priorities count, 0 not at all; none: 0.6 in the proportional form, 0.7 by rank."""
    floor: Annotated[float, Field(ge=0, le=MAX_FLOOR)] = 1e-3
    """u, the share of the law that is uniform."""
    sampling: Sampling = Sampling.STRATIFIED

    @property
    def derived(self) -> tuple[Derived, ...]:
        return (Derived("last", self.signal),)

    @property
    def static(self) -> tuple[str, ...]:
        return ()

    @property
    def own(self) -> tuple[str, ...]:
        return super().own if self.form == "rank" else ()

    @property
    def exponent(self) -> float:
        """The alpha in force."""
        return _ALPHAS[self.form] if self.alpha is None else self.alpha

    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> Drawer:
        if self.form == "rank":
            return super().drawer(examples, seed=seed, batch_size=batch_size, state=state)
        curve = (POWER, self.exponent) if self.exponent else (FLAT, 0.0)
        by = ByColumn(self.derived[0].name, curve, "max", self.floor, self.sampling, greatest=0.0)
        return ScoredDrawer(by, examples, seed, batch_size, state)

    def weights(self, rows: Rows, moment: Moment) -> Float64s:
        """Those of the form by rank."""
        live = np.flatnonzero(rows.live)
        priorities = rows[self.derived[0].name][live]
        priorities = np.where(np.isnan(priorities), np.float32(np.inf), priorities)
        weights = np.zeros(rows.size)
        weights[live] = by_rank(
            priorities, exact.power(len(live) - np.arange(len(live), dtype=np.float64), -self.exponent)
        )
        return weights
