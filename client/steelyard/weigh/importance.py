"""Importance: undoes the bias of a draw that is not uniform.

    w_i = (1 / (N p_i))^beta                                normalise "none"
    w_i = (1 / (N p_i))^beta / max_j (1 / (N p_j))^beta     normalise "batch_max"

With beta 1 and no normalisation the mean of w_i L_i over the batch is an unbiased estimate of the mean loss
over the dataset: plain importance sampling (Katharopoulos and Fleuret, 2018). Prioritised experience replay
(Schaul et al., 2016) lets beta rise from 0.4 to 1 and divides by the largest weight, so that weights only
ever shrink a step; dqn_zoo takes that maximum over the sampled batch, which needs the probabilities of the
whole global batch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

from steelyard.source import Source
from steelyard.weigh import checks
from steelyard.weigh.namespace import as_float, counted, namespace, same_kind
from steelyard.weigh.namespace import cast as cast_array
from steelyard.weigh.rule import Array, Context, Reads, Rule

Normalise = Literal["none", "batch_max"]


@dataclass(frozen=True)
class Importance(Rule):
    """(1 / (N p))^beta. A position whose probability is not a positive number has weight 0.

    The weights do not sum to n: their mean is the estimate's own noise around 1.
    """

    method: ClassVar[str] = "importance"
    source: ClassVar[Source] = Source(
        "Prioritized Experience Replay (Schaul et al., 2016); Not All Samples Are Created Equal (Katharopoulos and "
        "Fleuret, 2018)",
        "importance weights; dqn_zoo replay.py, idiap/importance-sampling reweighting.py",
    )
    never_reported: ClassVar[str] = "They weigh by the probability that the draw gave them, as all others do."
    reads: ClassVar[Reads] = "probability"

    beta: float = 1.0
    """How much of the bias is undone: 0 none, 1 all of it."""
    normalise: Normalise = "none"
    """What the weights are divided by: nothing, or the largest of the batch."""

    def __post_init__(self) -> None:
        normalise = checks.choice(f"{self.method}.normalise", self.normalise, get_args(Normalise))
        object.__setattr__(self, "beta", checks.number(f"{self.method}.beta", self.beta, 0.0, 1.0))
        object.__setattr__(self, "normalise", cast("Normalise", normalise))

    def weights(self, losses: Array, context: Context) -> Array:
        """The weights of ids drawn with `probability` from `examples` examples; see steelyard.weigh.rule."""
        probability, examples = context.probability, context.examples
        if probability is None or examples is None:
            missing = "probability" if probability is None else "examples"
            raise ValueError(
                f"{self.method}: expected the probability of each id and the number of examples, "
                f"got no {missing}"
            )
        if examples < 1:
            raise ValueError(f"{self.method}: expected at least 1 example, got {examples}")
        losses = as_float(losses)
        xp = namespace(losses)
        p = as_float(same_kind("probability", probability, losses))
        mask, _ = counted(losses, context.mask)
        valid = xp.isfinite(p) & (p > 0.0)
        valid = valid if mask is None else valid & mask
        # In the probability's own precision, which is exact; the result is rounded once.
        weights = xp.where(valid, self._inverse(xp.where(valid, p, 1.0), examples), 0.0)
        return cast_array(self._normalised(xp, weights), losses.dtype)

    def _inverse(self, p: Array, examples: int) -> Array:
        return (1.0 / (p * float(examples))) ** self.beta

    def _normalised(self, xp: Any, weights: Array) -> Array:
        if self.normalise == "none" or 0 in weights.shape:
            return weights
        highest = xp.max(weights)
        return weights / xp.where(highest > 0.0, highest, 1.0)
