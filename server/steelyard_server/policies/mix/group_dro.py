"""Group DRO: groups with a high loss gain mass step by step, so that the worst group is trained most.

    eg (exponentiated gradient): q_g ∝ q_g · exp(eta · (L_g + C / sqrt(n_g)))
    greedy (like a CVaR at alpha): from the group with the greatest EMA loss down, q_g = frac_g / alpha until the sum is
        1; frac_g = n_g / N, EMA: L <- (1 - gamma) L + gamma · L_batch

L_g is the mean loss of the group's rows in a step. Sagawa et al. (2020), `group_DRO/loss.py` of the authors.

Where this differs. There, batches are drawn with groups alike and q weighs the losses; here q is the law by which
groups are drawn, and the mean loss of a batch has the same expectation, sum_g q_g L_g. A group that is not in a batch
counts 0 in the authors' step, which is rare with groups alike; here groups of small mass are often absent, and would
sink the faster for it, so the last loss that was reported counts on. For the same reason a share `uniform` of the mass
goes to all groups alike, so that every loss stays known; 0 draws by q itself. Their code adds the correction C to the
reported loss in place; here what is reported stays as it is. log q is kept not below -700: a group whose q would round
to 0 can come back.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.policies.mix.contract import Float64s, GroupReport, Int64s, Mix, State
from steelyard_server.policies.mix.memory import array, listed, nothing, with_others_mean
from steelyard_server.policies.mix.shares import normalised, softmax

_LEAST_LOG = -700.0


class GroupDro(Mix):
    """The worst group first."""

    source: ClassVar[Source] = Source(
        paper="Distributionally Robust Neural Networks for Group Shifts (Sagawa et al., 2020)",
        where="the update of q; group_DRO/loss.py",
    )
    never_reported: ClassVar[str] = (
        "Drawn like every other example of their group; a group without a report counts as the mean of the others."
    )

    method: Literal["group_dro"] = "group_dro"
    form: Literal["eg", "greedy"] = "eg"
    """Either "eg", or "greedy": only the worst groups, up to the share alpha of the data."""
    signal: str = "loss"
    """What should be low in the worst group."""
    eta: Annotated[float, Field(ge=0, le=1e3)] = 0.01
    """Step size of form eg."""
    adjustment: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """C: small groups count as worse by C / sqrt(n_g)."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The share of the data that form greedy trains."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The share of the new loss in the EMA of form greedy."""
    uniform: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The share of the mass that goes to all groups alike; our default."""

    @property
    def signals(self) -> tuple[str, ...]:
        return (self.signal,)

    def fresh(self, sizes: Int64s) -> State:
        return nothing(len(sizes), "log_q", "last", "known")

    def update(self, state: State, report: GroupReport) -> State:
        means, count = report.means(self.signal)
        came = count > 0
        if not came.any():
            return state
        last, known = array(state, "last"), array(state, "known")
        if self.form == "greedy":
            means = np.where(known > 0, (1.0 - self.gamma) * last + self.gamma * means, means)
        last, known = np.where(came, means, last), np.where(came, 1.0, known)
        step = self.eta * self._adjusted(last, known, report.sizes)
        log_q = array(state, "log_q") + step
        log_q = np.maximum(log_q - log_q.max(), _LEAST_LOG)
        return listed(log_q=log_q, last=last, known=known)

    def masses(self, state: State, sizes: Int64s, step: int) -> Float64s:
        q = softmax(array(state, "log_q")) if self.form == "eg" else self._greedy(state, sizes)
        return (1.0 - self.uniform) * q + self.uniform / max(len(sizes), 1)

    def _adjusted(self, last: Float64s, known: Float64s, sizes: Int64s) -> Float64s:
        correction = self.adjustment / np.sqrt(np.maximum(sizes, 1).astype(np.float64))
        return np.asarray(with_others_mean(last, known) + correction)

    def _greedy(self, state: State, sizes: Int64s) -> Float64s:
        known = array(state, "known")
        if not known.any():
            return sizes.astype(np.float64) / max(int(sizes.sum()), 1)
        share = normalised(sizes.astype(np.float64))
        _, level = np.unique(-self._adjusted(array(state, "last"), known, sizes), return_inverse=True)
        # Groups with the same loss are filled alike, so that no order among them matters.
        of_level = np.bincount(level, share)
        before = np.cumsum(of_level) - of_level
        taken = np.clip(self.alpha - before, 0.0, of_level)
        part = np.divide(taken, of_level, out=np.zeros_like(taken), where=of_level > 0)
        return np.asarray(share * part[level] / self.alpha)
