"""InfoBatch: prune half of what is well learned at each epoch, and let the survivors count for those left out.

At the start of an epoch, with the scores s_i (the last reported loss, 3 before the first):

    well learned: s_i < mean(s)
    keep = clamp(1 - prune_ratio, 0.1, 1); of the n well learned, int(keep · n) are kept at random with weight 1 / keep
    all others are kept with weight 1

The objective is mean(weight · L), not normalised again: weigh by `infobatch_rescale`, which hands the weights on. The
truncation of keep · n makes the expected gradient lower than the full one by less than one well-learned example in
the epoch. From epoch delta · num_epochs on nothing is pruned.

The authors' sampler resets once more when it is made, before the first epoch, and draws lots by the number of resets;
here they follow from the run's seed and the step. Retired examples are left out of the mean.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw.engines.choice import everything
from steelyard_server.policies.draw.engines.subset import Kept, SubsetDraw
from steelyard_server.policies.draw.rows import Moment, Rows

_LEAST_KEEP = 0.1


class Infobatch(SubsetDraw):
    """Prunes well-learned examples at random, and weighs those that stay."""

    source: ClassVar[Source] = Source(
        "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning (Qin et al., 2024)",
        "infobatch.py: prune, weights and the end of pruning by delta",
    )
    never_reported: ClassVar[str] = "They have the score `initial`, 3, so nothing is pruned at first."

    method: Literal["infobatch"] = "infobatch"
    prune_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """How much of what is well learned is left out."""
    num_epochs: Annotated[int, Field(ge=1)] | None = None
    """How many epochs the training has, for its end without pruning; None: it is pruned always."""
    delta: Annotated[float, Field(ge=0, le=1)] = 0.875
    """The share of `num_epochs` after which nothing is pruned."""
    initial: float = 3.0
    """The score before the first report."""
    rescale: bool = True
    """Whether the survivors get 1 / keep, for the weigh rule `infobatch_rescale`. Without it the objective is biased
    toward what is not well learned."""

    @property
    def derived(self) -> tuple[Derived, ...]:
        return (Derived("last", "loss"),)

    @property
    def gives_weights(self) -> bool:
        return self.rescale

    @property
    def keep_ratio(self) -> float:
        return min(max(1.0 - self.prune_ratio, _LEAST_KEEP), 1.0)

    def keep(self, rows: Rows, moment: Moment) -> Kept | None:
        if self.num_epochs is not None and moment.epoch >= self.delta * self.num_epochs:
            return everything(rows)
        scores = np.where(np.isnan(rows["last_loss"]), self.initial, rows["last_loss"].astype(np.float64))
        live = rows.live
        well = np.flatnonzero(live & (scores < scores[live].mean()))
        lots = moment.uniform(rows.size)[well]
        stay = well[np.argsort(lots, kind="stable")[: int(self.keep_ratio * len(well))]]
        mask = np.ones(rows.size, np.bool_)
        mask[well] = False
        mask[stay] = True
        weight = np.ones(rows.size, np.float32)
        weight[stay] = 1.0 / self.keep_ratio
        return Kept(mask, weight=weight)
