"""A batch of losses of any array library, made ready for a rule's arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from steelyard.weigh.namespace import as_float, counted, namespace
from steelyard.weigh.rule import Array, Context


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    xp: Any
    """The array functions of the losses' library."""
    losses: Array
    """float32 or float64, without gradient, in the shape that they came in."""
    n: Array | int
    """How many positions are not padding; on the device where there is a mask."""
    valid: Array
    """bool: the positions with a finite loss that are not padding."""

    @property
    def empty(self) -> bool:
        """Whether there is no position at all."""
        return 0 in self.losses.shape


def opened(losses: Array, context: Context) -> Batch:
    """The losses of one global batch. Errors as of Rule.weights."""
    losses = as_float(losses)
    xp = namespace(losses)
    mask, n = counted(losses, context.mask)
    finite = xp.isfinite(losses)
    return Batch(xp, losses, n, finite if mask is None else finite & mask)


def softmax(batch: Batch, exponents: Array) -> Array:
    """exp(exponents), scaled to sum to n over the valid positions; 0 at the others.

    An exponent at a position that is not valid must not be above all of the valid ones.
    """
    xp = batch.xp
    mass = xp.where(batch.valid, xp.exp(exponents - xp.max(exponents)), 0.0)
    total = xp.sum(mass)
    # The highest exponent adds 1 to the total, so it is below 1 only when nothing is valid.
    return mass * (batch.n / xp.where(total > 1.0, total, 1.0))
