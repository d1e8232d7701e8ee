"""Uniform: every example counts the same.

The rule that the authors' README prints as "uniform" is not this one: it puts the normalised losses
themselves through the softmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steelyard.weigh.namespace import as_float, counted, namespace
from steelyard.weigh.rule import Array, Reads


@dataclass(frozen=True)
class Uniform:
    """Weight 1, whatever the losses are: plain training. A non-finite loss is left for the trainer to see."""

    method: ClassVar[str] = "uniform"
    reads: ClassVar[Reads] = "nothing"

    def weights(
        self,
        losses: Array,
        *,
        step: int,
        probability: Array | None = None,
        examples: int | None = None,
        mask: Array | None = None,
    ) -> Array:
        """1 at every position that is not padding; see steelyard.weigh.rule."""
        losses = as_float(losses)
        xp = namespace(losses)
        mask, _ = counted(losses, mask)
        ones = xp.ones_like(losses)
        return ones if mask is None else xp.where(mask, ones, 0.0)
