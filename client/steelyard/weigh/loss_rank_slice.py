"""Loss rank slice: train on one slice of the batch by rank of the loss, such as the moderately hard examples.

    order the v valid losses from high to low;  c = floor(fraction v)
    chosen: the ranks portion c, ..., (portion + 1) c - 1;  w_i = n/c for them, 0 for the others

Portion 0 holds the highest losses. A batch too small for the slice asked for gives the nearest one that it has,
and at least one example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steelyard.source import Source
from steelyard.weigh import checks
from steelyard.weigh.batch import opened
from steelyard.weigh.choice import chosen_weights, part, ranks, valid_count
from steelyard.weigh.rule import Array, Context, Reads, Rule


@dataclass(frozen=True)
class LossRankSlice(Rule):
    """Ranks only: no outlier moves the slice by more than one place."""

    method: ClassVar[str] = "loss_rank_slice"
    source: ClassVar[Source] = Source(
        "Doubly Robust Instance-Reweighted Adversarial Training (Sow et al., 2024)",
        "rank mode; HardFocusTraining batch_training.py",
    )
    never_reported: ClassVar[str] = "Nothing is remembered: the losses of the batch alone decide."
    reads: ClassVar[Reads] = "losses"
    selects: ClassVar[bool] = True

    portion: int = 1
    """Which slice, counted from the highest losses; our default: the second, hard but not hardest."""
    fraction: float = 0.125
    """The size of a slice, as a part of the batch."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "portion", checks.count(f"{self.method}.portion", self.portion))
        object.__setattr__(self, "fraction", checks.share(f"{self.method}.fraction", self.fraction))
        if (self.portion + 1) * self.fraction > 1.0 + 1e-9:
            raise ValueError(
                f"{self.method}.portion: expected a slice within the batch, (portion + 1) fraction at most 1, got "
                f"portion {self.portion} of fraction {self.fraction}"
            )

    def weights(self, losses: Array, context: Context) -> Array:
        """n/k for the k examples of the slice, 0 for the others; see steelyard.weigh.rule."""
        batch = opened(losses, context)
        if batch.empty:
            return batch.losses
        size = part(batch, self.fraction)
        begin, last = self.portion * size, valid_count(batch) - size
        begin = batch.xp.where(begin < last, begin, last)
        rank = ranks(batch, batch.losses)
        return chosen_weights(batch, (rank >= begin) & (rank < begin + size))
