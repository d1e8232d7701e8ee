"""Top k: online hard example mining. Train on the k highest losses of the batch alone.

    w_i = n/k for the k highest losses, 0 for the others

The batch is the pool of candidates: draw more than is trained on. The source picks 64 regions of an image's
candidates, after the overlapping ones were dropped, which stays with the trainer.

Trap: mislabelled and corrupt examples have the highest losses, and are picked at every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steelyard.source import Source
from steelyard.weigh import checks
from steelyard.weigh.batch import opened
from steelyard.weigh.choice import chosen_weights, part, ranks
from steelyard.weigh.rule import Array, Context, Reads, Rule


@dataclass(frozen=True)
class TopK(Rule):
    """The k highest losses, by number or by fraction. Of equal losses the earlier is taken."""

    method: ClassVar[str] = "top_k"
    source: ClassVar[Source] = Source(
        "Training Region-based Object Detectors with Online Hard Example Mining (Shrivastava et al., 2016)",
        "abhi2610/ohem, configuration: 64 of the candidates",
    )
    never_reported: ClassVar[str] = "Nothing is remembered: the losses of the batch alone decide."
    reads: ClassVar[Reads] = "losses"
    selects: ClassVar[bool] = True

    k: int | None = None
    """How many; all of a batch that is smaller. 64 where neither this nor `fraction` is set."""
    fraction: float | None = None
    """The part of the batch, rounded down but at least one example, instead of k."""

    def __post_init__(self) -> None:
        if self.k is not None and self.fraction is not None:
            raise ValueError(
                f"{self.method}: expected k or fraction, got both, k {self.k} and fraction {self.fraction}"
            )
        if self.fraction is not None:
            object.__setattr__(self, "fraction", checks.share(f"{self.method}.fraction", self.fraction))
        else:
            k = 64 if self.k is None else self.k
            object.__setattr__(self, "k", checks.count(f"{self.method}.k", k, low=1))

    def weights(self, losses: Array, context: Context) -> Array:
        """n/k for the highest losses, 0 for the others; see steelyard.weigh.rule."""
        batch = opened(losses, context)
        if batch.empty:
            return batch.losses
        k = self.k if self.fraction is None else part(batch, self.fraction)
        return chosen_weights(batch, ranks(batch, batch.losses) < k)
