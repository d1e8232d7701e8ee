"""DoReMi: domains whose loss exceeds that of a reference model most gain mass.

    excess_c = mean over the reported of max(L - L_ref, 0); the last one counts where a domain is absent
    alpha <- (1 - eps) · softmax(log alpha + eta · excess) + eps / K;  average <- running mean of alpha over updates

Xie et al. (2023), `doremi/trainer.py` and `training_args.py` of the authors: eta 1, eps 1e-4 (1e-3 in their run
script). What the paper trains the final model with is the average.

Two ways to report. With `reference`, a static column with the reference model's loss of each example, the excess is
that of the example's mean loss. Without it the signal `excess` is taken as it comes: the paper clips token by token,
which only the trainer can do. Where this differs: there the proxy model draws by a fixed mix and weighs losses by
alpha; here alpha, or with draw_by "average" its average, is the law by which domains are drawn.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.core.exact import log
from steelyard_server.policies.mix.contract import Float64s, GroupReport, Int64s, Mix, SharePerGroup, State
from steelyard_server.policies.mix.memory import array, listed, nothing, with_others_mean
from steelyard_server.policies.mix.shares import drawable, normalised, softmax, uniform


class Doremi(Mix):
    """Mass where a reference model shows that more can be learned."""

    source: ClassVar[Source] = Source(
        paper="DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining (Xie et al., 2023)",
        where="the update of domain weights; doremi/trainer.py, training_args.py",
    )
    never_reported: ClassVar[str] = (
        "Drawn like every other example of their domain; a domain without a report counts as the mean of the others."
    )
    per_group: ClassVar[dict[str, float]] = {"initial": 0.0}

    method: Literal["doremi"] = "doremi"
    reference: str | None = None
    """The static column with the reference loss; None: the trainer reports the excess itself."""
    signal: str = "loss"
    """The reported loss, where there is a reference column."""
    excess: str = "excess"
    """The reported excess, where there is none."""
    eta: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    """Step size."""
    eps: Annotated[float, Field(ge=0, le=1)] = 1e-4
    """The share that is spread over all domains alike after each update."""
    initial: SharePerGroup | None = None
    """The mix at the start; None: domains alike."""
    draw_by: Literal["current", "average"] = "current"
    """The law of the draw: alpha as it is now, or its running average."""

    @property
    def signals(self) -> tuple[str, ...]:
        return (self.excess if self.reference is None else self.signal,)

    @property
    def columns(self) -> tuple[str, ...]:
        return () if self.reference is None else (self.reference,)

    def fresh(self, sizes: Int64s) -> State:
        groups = len(sizes)
        alpha = uniform(groups) if self.initial is None else normalised(self.numbers("initial", groups))
        return {**listed(alpha=alpha, average=alpha), **nothing(groups, "last", "known"), "updates": [0.0]}

    def update(self, state: State, report: GroupReport) -> State:
        means, count = self._excess(report).means("excess")
        came = count > 0
        if not came.any():
            return state
        last = np.where(came, means, array(state, "last"))
        known = np.where(came, 1.0, array(state, "known"))
        moved = softmax(log(array(state, "alpha")) + self.eta * with_others_mean(last, known))
        alpha = (1.0 - self.eps) * moved + self.eps / len(moved)
        updates = state["updates"][0] + 1.0
        average = array(state, "average")
        average = average + (alpha - average) / updates
        return {**listed(alpha=alpha, average=average, last=last, known=known), "updates": [updates]}

    def masses(self, state: State, sizes: Int64s, step: int) -> Float64s:
        return drawable(array(state, "alpha" if self.draw_by == "current" else "average"), sizes)

    def _excess(self, report: GroupReport) -> GroupReport:
        """The report with what counts of each row under "excess", which is never negative."""
        values = report.values[self.signals[0]]
        if self.reference is not None:
            values = values - report.values[self.reference]
        # NaN stays NaN: a row without a reference is skipped.
        clipped = np.where(values < 0, 0.0, values)
        return GroupReport(report.step, report.groups, {"excess": clipped}, report.sizes)
