"""What a weigh rule is. A rule says how much each example of one global batch counts.

The contract of every rule:

* It is a frozen dataclass whose fields are its parameters. Making one checks them: ValueError says what was
  expected and what came.
* `weights` is pure arithmetic on whole arrays, of the losses and the context alone; it changes nothing in place
  and lets no gradient through. A rule that may run in the trainer (see `server_only`) works for numpy arrays,
  torch tensors and JAX arrays, on the device of the losses, and never waits for that device. The others need
  numpy arrays only. Where it reads losses, the trainer's context has the step and the mask alone.
* The losses are those of the whole global batch (all ranks), in any shape. The result has their shape; it is
  float64 for float64 losses and float32 for all others.
* `mask` is False where a position is padding (slices of unequal length gathered into one array). Padding has
  weight 0 and is left out of everything, n included.
* A weight is scaled so that the plain mean of weight times loss over the n positions is the objective. A rule
  that reads losses has weights that sum to n, unless its docstring says otherwise. A non-finite loss has weight
  0 under it, but n counts it; when no loss is finite, all weights are 0.
* A rule that selects gives n/k to each of the k chosen and 0 to the others: the mean is that of the chosen.
* A rule that does not read losses takes only their shape, dtype and device, so that its weights are known
  before any loss is.
* Weights are finite and not negative for any finite losses. A context value that is NaN is unknown.
* A rule that is random draws from `steelyard.weigh.lots`: the same seed and step give the same weights.
* A rule that remembers gets its past in the context. Steps are folded in their order, a rule that reads losses
  at the close of a step, another at its draw: the weights of step t are made from the past of the steps before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from steelyard.source import Source

Array: TypeAlias = Any
"""A numpy array, a torch tensor or a JAX array: they share no type."""

Reads: TypeAlias = Literal["nothing", "losses", "probability", "draw"]

Past: TypeAlias = Mapping[str, npt.NDArray[np.float64]]
"""What a rule remembers, by name; small arrays of any shape."""


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """All that a rule may know of a batch besides its losses."""

    step: int = 0
    probability: Array | None = None
    """What each id was drawn with; of the losses' shape."""
    examples: int | None = None
    """The number N of examples of the dataset."""
    mask: Array | None = None
    """bool, of the losses' shape: False where a position is padding."""
    columns: Mapping[str, Array] = field(default_factory=dict)
    """Static columns and further reported signals at the batch's ids; of the losses' shape, NaN where unknown."""
    weight: Array | None = None
    """What the draw itself gave each, of the losses' shape; None: 1."""
    past: Past | None = None
    """What `remember` gave after the step before; None where no step was."""
    seed: int = 0
    """The run's, from which a random rule draws lots."""


class Rule(ABC):
    """One weigh rule with its parameters."""

    method: ClassVar[str]
    """The name by which a policy asks for the rule."""
    source: ClassVar[Source]
    never_reported: ClassVar[str]
    """What examples get that were never reported: one sentence."""
    example: ClassVar[Mapping[str, Any]] = {}
    """Values for the fields that have no default, with which the contract is tried."""

    reads: ClassVar[Reads]
    """What the weights depend on besides the step: "losses" needs those of all ranks, and the others are known at the
    draw. "draw": the draw's own weight or static columns."""
    selects: ClassVar[bool] = False
    """Whether weights are 0 for what is left out and n/k for the k chosen, also where losses are equal."""

    @property
    def remembers(self) -> bool:
        """Whether the weights depend on the steps before, by what `remember` keeps of them."""
        return False

    @property
    def random(self) -> bool:
        """Whether the weights depend on the context's seed: the rule draws lots."""
        return False

    @property
    def columns(self) -> tuple[str, ...]:
        """The static columns that the rule reads."""
        return ()

    @property
    def signals(self) -> tuple[str, ...]:
        """The reported signals that the rule reads besides the loss."""
        return ()

    @abstractmethod
    def weights(self, losses: Array, context: Context) -> Array:
        """The weight of each position.

        ValueError: shapes that differ, a mask that is not bool, or something that the rule reads and the context
        lacks. TypeError: not an array, or arrays of two kinds.
        """

    def remember(self, losses: Array, context: Context) -> Past:
        """The past of the step after: the context's, and this batch. As `weights`, for numpy arrays only."""
        return context.past or {}


def server_only(rule: Rule) -> str | None:
    """Why the weights of a rule cannot be made in the trainer; None where they can."""
    names = ", ".join(map(repr, (*rule.columns, *rule.signals)))
    if names:
        return f"it reads {names}, which only the server has for the whole batch"
    if rule.remembers:
        return "it remembers the batches before, which only the server saw all of"
    if rule.random:
        return "it draws lots, which only the server's seed decides"
    return None
