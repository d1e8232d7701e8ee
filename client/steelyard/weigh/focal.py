"""Focal: an example that the model already predicts well counts little.

    p_i = exp(-L_i)      the probability of the right answer, where the loss is its negative logarithm
    w_i = (1 - p_i)^gamma                 times alpha where label is 1, and 1 - alpha where it is 0, if alpha is set

The weights are those of the focal loss; they do not sum to n: the better the model, the smaller the step, as
published. The mean of w_i L_i is the focal loss itself, but its gradient is not: the published loss is
differentiated through w_i too, while a weight here is a constant. Losses below 0 count as 0.

A loss that is a mean over tokens or pixels gives the geometric mean of their probabilities as p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steelyard.source import Source
from steelyard.weigh import checks
from steelyard.weigh.batch import opened
from steelyard.weigh.namespace import same_kind
from steelyard.weigh.rule import Array, Context, Reads, Rule


@dataclass(frozen=True)
class Focal(Rule):
    """(1 - exp(-loss))^gamma, between 0 and 1."""

    method: ClassVar[str] = "focal"
    source: ClassVar[Source] = Source(
        "Focal Loss for Dense Object Detection (Lin et al., 2017)",
        "the modulating factor; torchvision ops/focal_loss.py",
    )
    never_reported: ClassVar[str] = "Nothing is remembered: the losses of the batch alone decide."
    reads: ClassVar[Reads] = "losses"

    gamma: float = 2.0
    """How fast well predicted examples lose weight; 0: none does."""
    alpha: float | None = None
    """The share of the positive examples against the negative (torchvision: 0.25), None: no such weight. With it the
    rule reads the column `label`, and a position whose label is not known weighs half."""
    label: str = "label"
    """The column that holds 1 for a positive example and 0 for a negative."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", checks.number(f"{self.method}.gamma", self.gamma, 0.0, 100.0))
        object.__setattr__(self, "label", checks.text(f"{self.method}.label", self.label))
        if self.alpha is not None:
            object.__setattr__(self, "alpha", checks.number(f"{self.method}.alpha", self.alpha, 0.0, 1.0))

    @property
    def columns(self) -> tuple[str, ...]:
        """The label, where alpha asks for it."""
        return () if self.alpha is None else (self.label,)

    def weights(self, losses: Array, context: Context) -> Array:
        """The modulating factors; see steelyard.weigh.rule."""
        batch = opened(losses, context)
        xp = batch.xp
        lost = xp.where(batch.valid & (batch.losses > 0.0), batch.losses, 0.0)
        # 1 - exp(-L), exact also where the model is nearly sure.
        weights = (-xp.expm1(-lost)) ** self.gamma
        if self.alpha is not None:
            if self.label not in context.columns:
                raise ValueError(f"{self.method}: expected the column {self.label!r}, got none")
            label = same_kind(self.label, context.columns[self.label], batch.losses)
            known = xp.where(label == 0.0, weights * (1.0 - self.alpha), weights * 0.5)
            weights = xp.where(label == 1.0, weights * self.alpha, known)
        return xp.where(batch.valid, weights, 0.0)
