"""RHO-LOSS: train on what is learnable and not yet learnt.

    score_i = L_i - reference_i;   the top `keep` of the batch are chosen: w_i = n/k for them, 0 for the others

The reference is the loss of a model trained on held-out data, computed once and stored as a column. An example that
is noise has a high loss under both models and a low score; one that is redundant has a low loss under both.

The batch is the pool of candidates: the source draws 320 and trains on 32 of them, so draw ten times as many as are
trained on. Reported losses are those of this step; a stale pool would be another method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from steelyard.source import Source
from steelyard.weigh import checks
from steelyard.weigh.flat import Flat, highest, part
from steelyard.weigh.rule import Array, Context, Reads, Rule


@dataclass(frozen=True)
class RhoLoss(Rule):
    """The highest reducible losses. Of equal ones the earlier is taken; without a reference none is."""

    method: ClassVar[str] = "rho_loss"
    source: ClassVar[Source] = Source(
        "Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet Learnt (Mindermann et al., "
        "2022)",
        "reducible holdout loss; RHO-Loss selection_methods, 32 of 320",
    )
    never_reported: ClassVar[str] = (
        "Nothing is remembered; an example whose reference is not known is never chosen."
    )
    reads: ClassVar[Reads] = "losses"
    selects: ClassVar[bool] = True

    reference: str = "reference"
    """The column of the losses under the held-out model."""
    keep: float = 0.1
    """The part of the batch that is chosen, rounded down but at least one example."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reference", checks.text(f"{self.method}.reference", self.reference))
        object.__setattr__(self, "keep", checks.share(f"{self.method}.keep", self.keep))

    @property
    def columns(self) -> tuple[str, ...]:
        """The reference losses."""
        return (self.reference,)

    def weights(self, losses: Array, context: Context) -> Array:
        """n/k for the highest reducible losses, 0 for the others; see steelyard.weigh.rule."""
        batch = Flat(self, losses, context)
        reference = batch.column(self.reference)
        able = batch.valid & ~np.isnan(reference)
        score = batch.losses - np.where(able, reference, 0.0)
        return batch.chosen(highest(score, able, part(self.keep, int(np.sum(batch.valid)))))
