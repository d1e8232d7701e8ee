"""Uniform: every example counts the same.

The rule that the authors' README prints as "uniform" is not this one: it puts the normalised losses
themselves through the softmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steelyard.source import Source
from steelyard.weigh.namespace import as_float, counted, namespace
from steelyard.weigh.rule import Array, Context, Reads, Rule


@dataclass(frozen=True)
class Uniform(Rule):
    """Weight 1, whatever the losses are: plain training. A non-finite loss is left for the trainer to see."""

    method: ClassVar[str] = "uniform"
    source: ClassVar[Source] = Source("the plain mean", "w_i = 1")
    never_reported: ClassVar[str] = "They weigh 1 as all others do."
    reads: ClassVar[Reads] = "nothing"

    def weights(self, losses: Array, context: Context) -> Array:
        """1 at every position that is not padding; see steelyard.weigh.rule."""
        losses = as_float(losses)
        xp = namespace(losses)
        mask, _ = counted(losses, context.mask)
        ones = xp.ones_like(losses)
        return ones if mask is None else xp.where(mask, ones, 0.0)
