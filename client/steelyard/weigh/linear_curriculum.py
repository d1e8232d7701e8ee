"""Linear curriculum: hard examples count little at first and fully in the end.

    W_i = D_i (1 - t) + t      t = e/m from 0 to 1 over the first m epochs, 1 afterwards

D_i is in [0, 1] and 1 for the easiest examples; its source calls it difficulty all the same. It is a static column,
made from a first ranker: for a relevant document the reciprocal of its rank or its score's place among those of the
query, for another 1 less that; of a pair (D_pos - D_neg + 1) / 2.

The weights do not sum to n. What differs from the authors' code: there the loss of the whole batch is multiplied by
the mean of W (here `mean` "batch"), so that a batch counts more or less but no example more than its neighbours; by
default each example has its own W here. Their guard of 1e-8 on W is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from steelyard.source import Source
from steelyard.weigh import checks
from steelyard.weigh.flat import Flat
from steelyard.weigh.rule import Array, Context, Reads, Rule

Mean = Literal["example", "batch"]


@dataclass(frozen=True)
class LinearCurriculum(Rule):
    """Weights from a static column and the step; no loss is read."""

    method: ClassVar[str] = "linear_curriculum"
    source: ClassVar[Source] = Source(
        "Training Curricula for Open Domain Answer Re-Ranking (MacAvaney et al., 2020)",
        "the weight of a training pair; OpenNIR pointwise_cl.py, pairwise_cl.py",
    )
    never_reported: ClassVar[str] = (
        "They weigh by their column as all others do; an example whose column is not known weighs 1."
    )
    reads: ClassVar[Reads] = "draw"

    ease: str = "ease"
    """The column of D: 1 for the easiest, 0 for the hardest; what lies outside counts as the nearer end."""
    end_epoch: int = 20
    """m: from this epoch on all weigh 1. e is the number of whole epochs gone."""
    epoch_steps: int | None = None
    """The steps of an epoch; None: ceil(examples / batch)."""
    end_step: int | None = None
    """Where set, t = step / end_step instead, and epochs are not counted."""
    anti: bool = False
    """Hard examples first: 1 - D in place of D, also for a column where 1 is the hardest."""
    mean: Mean = "example"
    """Whether each example has its own weight or all have the batch's mean ("batch")."""

    def __post_init__(self) -> None:
        name = self.method
        fields = {
            "ease": checks.text(f"{name}.ease", self.ease),
            "end_epoch": checks.count(f"{name}.end_epoch", self.end_epoch),
            "anti": checks.flag(f"{name}.anti", self.anti),
            "mean": checks.choice(f"{name}.mean", self.mean, get_args(Mean)),
        }
        if self.epoch_steps is not None:
            fields["epoch_steps"] = checks.count(f"{name}.epoch_steps", self.epoch_steps, low=1)
        if self.end_step is not None:
            fields["end_step"] = checks.count(f"{name}.end_step", self.end_step)
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    @property
    def columns(self) -> tuple[str, ...]:
        """The ease of an example."""
        return (self.ease,)

    def progress(self, batch_size: int, context: Context) -> float:
        """t in [0, 1]. ValueError: the number of examples is needed and not there."""
        if self.end_step is not None:
            done, whole = context.step, self.end_step
        else:
            done, whole = context.step // self._epoch_steps(batch_size, context), self.end_epoch
        return 1.0 if done >= whole else done / whole

    def weights(self, losses: Array, context: Context) -> Array:
        """W of each example, or their mean; see steelyard.weigh.rule."""
        batch = Flat(self, np.zeros_like(losses) if isinstance(losses, np.ndarray) else losses, context)
        ease = np.clip(batch.column(self.ease), 0.0, 1.0)
        ease = 1.0 - ease if self.anti else ease
        t = self.progress(len(batch), context)
        weights = np.where(np.isnan(ease), 1.0, ease * (1.0 - t) + t)
        if self.mean == "batch":
            weights = np.full(len(batch), np.sum(weights[batch.valid]) / max(batch.n, 1))
        return batch.shaped(weights)

    def _epoch_steps(self, batch_size: int, context: Context) -> int:
        if self.epoch_steps is not None:
            return self.epoch_steps
        if context.examples is None:
            raise ValueError(
                f"{self.method}: expected the number of examples, for the length of an epoch, or epoch_steps or "
                "end_step; got none"
            )
        return -(-context.examples // max(batch_size, 1)) or 1
