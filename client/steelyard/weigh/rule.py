"""What a weigh rule is. A rule says how much each example of one global batch counts.

The contract of every rule:

* It is a frozen dataclass whose fields are its parameters. Making one checks them: ValueError says what was
  expected and what came.
* `weights` is pure arithmetic on whole arrays. It works for numpy arrays, torch tensors and JAX arrays, on
  the device of the losses; it never waits for that device, changes nothing in place, and lets no gradient
  through.
* The losses are those of the whole global batch (all ranks), in any shape. The result has their shape; it is
  float64 for float64 losses and float32 for all others.
* `mask` is False where a position is padding (slices of unequal length gathered into one array). Padding has
  weight 0 and is left out of everything, n included.
* A weight is scaled so that the plain mean of weight times loss over the n positions is the objective. A rule
  that reads losses has weights that sum to n. A non-finite loss has weight 0 under it, but n counts it; when
  no loss is finite, all weights are 0.
* A rule that does not read losses takes only their shape, dtype and device, so that its weights are known
  before any loss is.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol, TypeAlias

Array: TypeAlias = Any
"""A numpy array, a torch tensor or a JAX array: they share no type."""

Reads: TypeAlias = Literal["nothing", "losses", "probability"]


class Rule(Protocol):
    """One weigh rule with its parameters."""

    method: ClassVar[str]
    """The name by which a policy asks for the rule."""

    reads: ClassVar[Reads]
    """What the weights depend on besides the step: "losses" needs those of all ranks."""

    def weights(
        self,
        losses: Array,
        *,
        step: int,
        probability: Array | None = None,
        examples: int | None = None,
        mask: Array | None = None,
    ) -> Array:
        """The weight of each position.

        `probability` (of the losses' shape) is what each id was drawn with and `examples` the number of
        examples N of the dataset; only rules that read the probability use them, and raise ValueError
        without. `mask` is bool, of the losses' shape. ValueError: shapes that differ, a mask that is not
        bool. TypeError: not an array, or arrays of two kinds.
        """
        ...
