"""Self-paced learning: only what is easy enough yet, and more of it as time goes by.

    hard:    w_i = 1 if L_i < lambda, else 0
    linear:  w_i = max(0, 1 - L_i / lambda)
    lambda at step t = threshold growth^floor(t / every)

The weights are those of the joint minimum over model and weights; they do not sum to n, so that steps are small
while little is easy enough. Losses below 0 count as 0.

The growth of lambda is the user's to set: it is in units of the loss, and where it starts above all losses nothing
is left out. Trap: an example that is hard for a good reason, such as a rare class, comes last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from steelyard.source import Source
from steelyard.weigh import checks
from steelyard.weigh.batch import opened
from steelyard.weigh.rule import Array, Context, Reads, Rule

Form = Literal["hard", "linear"]

_MAX_LOG = 69.0  # of 1e30: no loss is above it


@dataclass(frozen=True)
class SelfPaced(Rule):
    """The losses below a threshold that grows."""

    method: ClassVar[str] = "self_paced"
    source: ClassVar[Source] = Source(
        "Self-Paced Learning for Latent Variable Models (Kumar et al., 2010); the linear form: Self-Paced Curriculum "
        "Learning (Jiang et al., 2015)",
        "the closed forms of the weights",
    )
    never_reported: ClassVar[str] = "Nothing is remembered: the losses of the batch alone decide."
    reads: ClassVar[Reads] = "losses"

    form: Form = "hard"
    """Whether a loss below the threshold counts fully (hard) or the more the lower it is (linear)."""
    threshold: float = 1.0
    """lambda at step 0, in units of the loss."""
    growth: float = 1.3
    """What lambda is multiplied by each time; our default."""
    every: int = 1000
    """After so many steps lambda grows; our default."""

    def __post_init__(self) -> None:
        fields = {
            "form": checks.choice(f"{self.method}.form", self.form, get_args(Form)),
            "threshold": checks.number(f"{self.method}.threshold", self.threshold, 1e-6, 1e12),
            "growth": checks.number(f"{self.method}.growth", self.growth, 1.0, 1e6),
            "every": checks.count(f"{self.method}.every", self.every, low=1),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def threshold_at(self, step: int) -> float:
        """lambda at a step; 1e30 at most."""
        grown = math.log(self.threshold) + step // self.every * math.log(self.growth)
        if grown > _MAX_LOG:
            return 1e30
        return self.threshold * self.growth ** (step // self.every)

    def weights(self, losses: Array, context: Context) -> Array:
        """The weights at the threshold of this step; see steelyard.weigh.rule."""
        batch = opened(losses, context)
        xp, threshold = batch.xp, self.threshold_at(context.step)
        if self.form == "hard":
            return xp.where(batch.valid & (batch.losses < threshold), xp.ones_like(batch.losses), 0.0)
        loss = xp.where(batch.losses > 0.0, batch.losses, 0.0)
        return xp.where(batch.valid, 1.0 - xp.where(loss < threshold, loss, threshold) / threshold, 0.0)
