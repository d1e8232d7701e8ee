"""Importance: undoes the bias of a draw that is not uniform.

    w_i = (1 / (N p_i))^beta                                normalise "none"
    w_i = (1 / (N p_i))^beta / max_j (1 / (N p_j))^beta     normalise "batch_max", "run_max"
    w_i = (1 / (N p_i))^k  c                                k set; c keeps the batch's sum of w_j p_j as at k = 1

With beta 1 and no normalisation the mean of w_i L_i over the batch is an unbiased estimate of the mean loss
over the dataset: plain importance sampling (Katharopoulos and Fleuret, 2018). Prioritised experience replay
(Schaul et al., 2016) lets beta rise from 0.4 to 1 (beta 0.4 with beta_steps) and divides by the largest weight,
so that weights only ever shrink a step; dqn_zoo takes that maximum over the sampled batch, which needs the
probabilities of the whole global batch here.

"run_max" takes the maximum over all that the run has drawn so far, so that a step is not larger for the batch's
company. OpenAI's baselines take it over the whole buffer as it is now, by a second tree of minima: that knows the
examples that were never drawn, and forgets a probability that no longer holds, while run_max does neither. Of the
past the greatest 1 / (N p) is kept and the exponent of the step applied to it, as they do.

k is the biased form of Katharopoulos and Fleuret: below 1 it favours the high scores that were drawn often. Theirs
keeps the batch's sum of weight times score; here p stands for the score, which it is proportional to unless the
draw mixes something in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np

from steelyard.source import Source
from steelyard.weigh import checks
from steelyard.weigh.namespace import as_float, counted, namespace, same_kind
from steelyard.weigh.namespace import cast as cast_array
from steelyard.weigh.rule import Array, Context, Past, Reads, Rule

Normalise = Literal["none", "batch_max", "run_max"]


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
    """What the weights are divided by: nothing, or the largest of the batch or of the run so far."""
    beta_steps: int | None = None
    """Where set, beta rises linearly to 1 over so many steps."""
    k: float | None = None
    """Where set, the exponent of the biased form (its class has 0.5), instead of beta and normalise."""

    def __post_init__(self) -> None:
        normalise = checks.choice(f"{self.method}.normalise", self.normalise, get_args(Normalise))
        object.__setattr__(self, "beta", checks.number(f"{self.method}.beta", self.beta, 0.0, 1.0))
        object.__setattr__(self, "normalise", cast("Normalise", normalise))
        if self.beta_steps is not None:
            steps = checks.count(f"{self.method}.beta_steps", self.beta_steps, low=1)
            object.__setattr__(self, "beta_steps", steps)
        if self.k is not None:
            object.__setattr__(self, "k", checks.number(f"{self.method}.k", self.k, 0.0, 1.0))
            if self.beta != 1.0 or self.normalise != "none" or self.beta_steps is not None:
                raise ValueError(
                    f"{self.method}.k: expected it alone, without beta, normalise and beta_steps, got k {self.k} with "
                    f"beta {self.beta}, normalise {self.normalise!r} and beta_steps {self.beta_steps}"
                )

    @property
    def remembers(self) -> bool:
        """The greatest 1 / (N p) drawn so far, for run_max."""
        return self.normalise == "run_max"

    def beta_at(self, step: int) -> float:
        """The exponent that holds at `step`."""
        if self.k is not None:
            return self.k
        if self.beta_steps is None:
            return self.beta
        return self.beta + (1.0 - self.beta) * min(step / self.beta_steps, 1.0)

    def weights(self, losses: Array, context: Context) -> Array:
        """The weights of ids drawn with `probability` from `examples` examples; see steelyard.weigh.rule."""
        losses = as_float(losses)
        xp = namespace(losses)
        plain, p, valid = self._inverse(losses, context)
        # In the probability's own precision, which is exact; the result is rounded once.
        powers = xp.where(valid, plain ** self.beta_at(context.step), 0.0)
        return cast_array(self._normalised(xp, powers, plain, p, valid, context), losses.dtype)

    def remember(self, losses: Array, context: Context) -> Past:
        """The greatest 1 / (N p) drawn so far: "highest", float64[1]. Nothing unless it is needed."""
        if not self.remembers:
            return {}
        plain, _, valid = self._inverse(as_float(losses), context)
        return {"highest": np.maximum(np.max(plain, where=valid, initial=0.0), _highest(context))}

    def _inverse(self, losses: Array, context: Context) -> tuple[Array, Array, Array]:
        """1 / (N p) and p, both 1 where p is no probability, and where it is one."""
        probability, examples = context.probability, context.examples
        if probability is None or examples is None:
            missing = "probability" if probability is None else "examples"
            raise ValueError(
                f"{self.method}: expected the probability of each id and the number of examples, "
                f"got no {missing}"
            )
        if examples < 1:
            raise ValueError(f"{self.method}: expected at least 1 example, got {examples}")
        xp = namespace(losses)
        p = as_float(same_kind("probability", probability, losses))
        mask, _ = counted(losses, context.mask)
        valid = xp.isfinite(p) & (p > 0.0)
        valid = valid if mask is None else valid & mask
        p = xp.where(valid, p, 1.0)
        return 1.0 / (p * float(examples)), p, valid

    def _normalised(
        self, xp: Any, powers: Array, plain: Array, p: Array, valid: Array, context: Context
    ) -> Array:
        if 0 in powers.shape:
            return powers
        if self.k is not None:
            kept = xp.sum(xp.where(valid, plain * p, 0.0))
            own = xp.sum(powers * p)
            return powers * (kept / xp.where(own > 0.0, own, 1.0))
        if self.normalise == "none":
            return powers
        highest = xp.max(powers)
        if self.normalise == "run_max":
            before = float(_highest(context)[0]) ** self.beta_at(context.step)
            highest = xp.where(highest > before, highest, before)
        return powers / xp.where(highest > 0.0, highest, 1.0)


def _highest(context: Context) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.asarray((context.past or {}).get("highest", np.zeros(1)), np.float64)
