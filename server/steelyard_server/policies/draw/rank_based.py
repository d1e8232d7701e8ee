"""Online batch selection: the rank of an example's latest loss decides, and not the loss itself.

    p_i ∝ s^-rank_i,  s = s_e^(1/N),  the highest loss having rank 1

so that the first of N is s_e times as likely as the one after the last. With `decay_steps` T, s_e at step t is
s_e^(1 - t/T): it falls exponentially to 1, a uniform draw, at step T, and stays there.

Source: Loshchilov and Hutter 2016. The law with s_e = 100 is as in the port in REDUCR's utilities; the decay and that
examples without a loss come first are as remembered from the paper. The paper also computes all losses anew now and
then: that is a pass of the trainer's own with `observe`. It sorts now and then, as `refresh_steps` says. Equal losses
share the weights of their ranks.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.core import exact
from steelyard_server.core.sampling import Sampling
from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw.engines.refreshed import RefreshedDraw
from steelyard_server.policies.draw.ranks import by_rank
from steelyard_server.policies.draw.rows import Float64s, Moment, Rows


class RankBased(RefreshedDraw):
    """Exponentially fewer draws for each rank further down."""

    source: ClassVar[Source] = Source(
        "Online Batch Selection for Faster Training of Neural Networks (Loshchilov and Hutter, 2016)",
        "p_rank proportional to 1 / s^rank; the port in REDUCR's utilities",
    )
    never_reported: ClassVar[str] = "The first ranks, which they share evenly, so that they come soon."

    method: Literal["rank_based"] = "rank_based"
    signal: str = Field(default="loss", min_length=1, max_length=64)
    """The reported signal whose last value is ranked."""
    s_e: Annotated[float, Field(ge=1, le=1e18)] = 100.0
    """How many times as likely the highest loss is as the lowest, at step 0."""
    decay_steps: Annotated[int, Field(ge=1)] | None = None
    """The step at which s_e has fallen to 1; none: it stays."""
    sampling: Sampling = Sampling.INDEPENDENT

    @property
    def derived(self) -> tuple[Derived, ...]:
        return (Derived("last", self.signal),)

    @property
    def static(self) -> tuple[str, ...]:
        return ()

    def weights(self, rows: Rows, moment: Moment) -> Float64s:
        live = np.flatnonzero(rows.live)
        losses = rows[self.derived[0].name][live]
        losses = np.where(np.isnan(losses), np.float32(np.inf), losses)
        # The greatest weight is that of the last place of the ascending order.
        ranks = np.arange(len(live), 0, -1, dtype=np.float64)
        weights = np.zeros(rows.size)
        weights[live] = by_rank(
            losses, exact.exp2(ranks * (-self._log2_pressure(moment.step) / max(len(live), 1)))
        )
        return weights

    def _log2_pressure(self, step: int) -> float:
        """log2 of s_e at `step`."""
        left = 1.0 if self.decay_steps is None else max(1.0 - step / self.decay_steps, 0.0)
        return float(exact.log2(np.array([self.s_e]))[0]) * left
