"""Online data mixing: a bandit (EXP3) whose arms are domains and whose reward is a domain's loss.

    eps_t = min(1 / K, sqrt(ln K / (K · t)));  p_d = (1 - K · eps_t) · exp(eps_{t-1} · R_d) / sum + eps_t
    smoothed: R_d <- decay · R_d + (1 - decay) · exp(reward_d)
    weighted: R_d <- decay · R_d + (1 - decay) · reward_d / p_d
    exp3:     R_d <- R_d + reward_d / p_d

for the domains in a report, t counting the reports; before the first, domains are alike. Albalak et al. (2023),
`data_sampling_utils.py` of the authors for smoothed and exp3, decay .9; `weighted` is how we remember the paper's own
form. Their update of many domains at once leaves exp() out of the numerator, which is not followed.

Every domain keeps eps_t. Since eps also stands before R, which the smoothed forms bound, their law comes back to
domains alike as t grows; that of exp3, whose R grows, does not. exp(reward) grows fast: a reward above 30 counts as 30
there, so that one wild loss is forgotten after some hundred reports and not never.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.core.exact import exp, log
from steelyard_server.policies.mix.contract import Float64s, GroupReport, Int64s, Mix, State
from steelyard_server.policies.mix.memory import array, listed, nothing
from steelyard_server.policies.mix.shares import softmax, uniform

_GREATEST_REWARD = 30.0
# What exp3 adds up stays finite however long a run is.
_GREATEST_SUM = 1e300


class Odm(Mix):
    """The domain with the greatest reward, with exploration that fades."""

    source: ClassVar[Source] = Source(
        paper="Efficient Online Data Mixing For Language Model Pre-Training (Albalak et al., 2023)",
        where="the law p and the updates of R; online-data-mixing data_sampling_utils.py",
    )
    never_reported: ClassVar[str] = (
        "Drawn like every other example of their domain; a domain without a report has reward 0 so far."
    )

    method: Literal["odm"] = "odm"
    signal: str = "loss"
    """The reward: its mean over a domain's rows of a step."""
    updater: Literal["smoothed", "weighted", "exp3"] = "smoothed"
    """How a reward changes R, by which a domain is preferred: "smoothed", a running mean of exp(reward); "weighted",
    one of reward / share of the domain; "exp3", the sum of these."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """How much of R stays in the two smoothed forms."""

    @property
    def signals(self) -> tuple[str, ...]:
        return (self.signal,)

    def fresh(self, sizes: Int64s) -> State:
        return {**nothing(len(sizes), "reward"), "reports": [0.0]}

    def update(self, state: State, report: GroupReport) -> State:
        means, count = report.means(self.signal)
        came = count > 0
        if not came.any():
            return state
        known = array(state, "reward")
        gained = np.where(came, means, 0.0)
        if self.updater == "smoothed":
            gained = exp(np.minimum(gained, _GREATEST_REWARD))
        else:
            gained = gained / self._p(state)
        kept = 1.0 if self.updater == "exp3" else self.decay
        share = 1.0 if self.updater == "exp3" else 1.0 - self.decay
        reward = np.where(came, kept * known + share * gained, known)
        reward = np.clip(reward, -_GREATEST_SUM, _GREATEST_SUM)
        return {**listed(reward=reward), "reports": [state["reports"][0] + 1.0]}

    def masses(self, state: State, sizes: Int64s, step: int) -> Float64s:
        return self._p(state)

    def _p(self, state: State) -> Float64s:
        reward, reports = array(state, "reward"), state["reports"][0]
        groups = len(reward)
        if not reports:
            return uniform(groups)
        now, before = self._eps(groups, reports), self._eps(groups, reports - 1.0)
        return (1.0 - groups * now) * softmax(before * reward) + now

    def _eps(self, groups: int, reports: float) -> float:
        """What each domain keeps after so many reports."""
        alike = 1.0 / groups
        if not reports:
            return alike
        logarithm = float(log(np.array([float(groups)]))[0])
        return min(alike, float(np.sqrt(logarithm / (groups * reports))))
