"""KL-DRO: the softmax of the raw losses, the worst case within a Kullback-Leibler ball around the batch.

    w_i = n exp(L_i / lambda) / sum_j exp(L_j / lambda)

The inner maximum over weights of sum_i w_i L_i - lambda KL(w || uniform) has this closed form. Small lambda follows
the highest losses alone, large lambda is plain training. Unlike the rules that normalise, it knows the scale of the
losses: a batch of losses twice as large is weighed twice as sharply.

Trap: one outlier takes nearly all of the weight, so label noise ruins it. The authors' weights sum to 1 and their
objective is the sum; here they sum to n and it is the mean, the same number. Their code can also gather several
micro-batches before it weighs ("patience"); here the batch is always the whole global one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steelyard.source import Source
from steelyard.weigh import checks
from steelyard.weigh.batch import Batch, opened, softmax
from steelyard.weigh.rule import Array, Context, Reads, Rule

# exp of so much less than 0 is 0, in double precision too.
_NOTHING = 1000.0


@dataclass(frozen=True)
class KlDro(Rule):
    """Softmax of the losses at a temperature; there is no bound on how far weights part."""

    method: ClassVar[str] = "kl_dro"
    source: ClassVar[Source] = Source(
        "Doubly Robust Instance-Reweighted Adversarial Training (Sow et al., 2024)",
        "closed form of the inner maximum; HardFocusTraining batch_training.py",
    )
    never_reported: ClassVar[str] = "Nothing is remembered: the losses of the batch alone decide."
    reads: ClassVar[Reads] = "losses"

    temperature: float = 1.0
    """lambda, in units of the loss: how dear it is to leave the uniform weights."""

    def __post_init__(self) -> None:
        temperature = checks.number(f"{self.method}.temperature", self.temperature, 1e-6, 1e12)
        object.__setattr__(self, "temperature", temperature)

    def weights(self, losses: Array, context: Context) -> Array:
        """The softmax of the losses; see steelyard.weigh.rule."""
        batch = opened(losses, context)
        return batch.losses if batch.empty else softmax(batch, self._exponents(batch))

    def _exponents(self, batch: Batch) -> Array:
        """(L - max L) / lambda, cut where its exp is 0; whatever the losses are, nothing overflows."""
        xp = batch.xp
        half = xp.where(batch.valid, batch.losses * 0.5, -0.5 * xp.finfo(batch.losses.dtype).max)
        below = half - xp.max(half)
        lowest = -0.5 * _NOTHING * self.temperature
        return xp.where(below > lowest, below, lowest) * (2.0 / self.temperature)
