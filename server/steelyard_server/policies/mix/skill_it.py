"""Skill-it: a skill gains mass for its own loss and for the losses of the skills that it helps to learn.

    p_i ∝ p0_i · exp(eta · sum_j A_ij · sum over the last w rounds of L_j)

A_ij says how much training on skill i helps skill j; 1 on the diagonal. With `targets` only their losses count, and the
rounds are averaged, not summed. Chen et al. (2023), `trainer/mw_trainer.py` of the authors: window 3, eta .1 to .5, off
the diagonal .5, p0 = 1.

A round is `every` steps. L_j is the mean of what was reported of skill j in it; a skill of which nothing came keeps its
last one, and the mean of the others before it had any. The authors evaluate held-out rows: for that, name a signal of
its own (`signal`) and report it for rows that have a group but are retired.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from steelyard.source import Source
from steelyard_server.core.exact import log
from steelyard_server.policies.mix.contract import (
    Float64s,
    GroupReport,
    Int64s,
    Mix,
    PerGroup,
    SharePerGroup,
    State,
    expect_square,
    not_all_zero,
)
from steelyard_server.policies.mix.memory import (
    array,
    close_round,
    fresh_round,
    gather,
    has_ended,
    with_others_mean,
)
from steelyard_server.policies.mix.shares import drawable, softmax


class SkillIt(Mix):
    """Skills by what training on them helps."""

    source: ClassVar[Source] = Source(
        paper="Skill-it! A Data-Driven Skills Framework for Understanding and Training Language Models "
        "(Chen et al., 2023)",
        where="the online update of p; trainer/mw_trainer.py",
    )
    never_reported: ClassVar[str] = (
        "Drawn like every other example of their skill; a skill without a report counts as the mean of the others."
    )
    per_group: ClassVar[dict[str, float]] = {"initial": 1.0, "targets": 0.0}

    method: Literal["skill_it"] = "skill_it"
    graph: tuple[PerGroup, ...] | None = None
    """A, one row a skill; None: the identity, no skill helps another. So it is for skills that come later."""
    eta: Annotated[float, Field(ge=0, le=1e3)] = 0.5
    """How strongly losses count."""
    window: Annotated[int, Field(ge=1, le=1024)] = 3
    """How many rounds count."""
    every: Annotated[int, Field(ge=1)] = 100
    """Steps of a round; our default."""
    targets: Annotated[tuple[Literal[0, 1], ...], AfterValidator(not_all_zero)] | None = None
    """1 for each skill whose loss counts; None: all."""
    initial: SharePerGroup | None = None
    """p0; None: skills alike."""
    signal: str = "loss"
    """The loss of a skill."""

    @property
    def signals(self) -> tuple[str, ...]:
        return (self.signal,)

    def start(self, sizes: Int64s) -> State:
        expect_square("graph", self.graph, len(sizes))
        return super().start(sizes)

    def fresh(self, sizes: Int64s) -> State:
        return {**fresh_round(len(sizes)), "window": []}

    def grown(self, state: State, sizes: Int64s) -> State:
        new = len(sizes) - len(state["known"])
        rounds = self._rounds(state)
        window = [[*losses, *[0.0] * new] for losses in rounds]
        return {**super().grown(state, sizes), "window": [loss for losses in window for loss in losses]}

    def update(self, state: State, report: GroupReport) -> State:
        return gather(self.prepared(state, report.sizes, report.step), report, self.signal, self.every)

    def prepared(self, state: State, sizes: Int64s, step: int) -> State:
        if not has_ended(state, step):
            return state
        state = close_round(state, step, self.every)
        losses = with_others_mean(array(state, "last"), array(state, "known")).tolist()
        latest = [*self._rounds(state), losses][-self.window :]
        return {**state, "window": [loss for losses in latest for loss in losses]}

    def masses(self, state: State, sizes: Int64s, step: int) -> Float64s:
        groups, state = len(sizes), self.prepared(state, sizes, step)
        first = np.ones(groups) if self.initial is None else self.numbers("initial", groups)
        return drawable(softmax(log(first) + self.eta * self._helped(state, groups)), sizes)

    def _helped(self, state: State, groups: int) -> Float64s:
        """sum_j A_ij · loss of j over the window, float64[K]."""
        rounds = self._rounds(state)
        losses = np.array(rounds).sum(axis=0) if rounds else np.zeros(groups)
        if self.targets is not None:
            losses = losses * self.numbers("targets", groups) / max(len(rounds), 1)
        if self.graph is None:
            return losses
        helps, known = np.eye(groups), len(self.graph)
        helps[:known, :known] = self.graph
        return np.asarray((helps * losses).sum(axis=1))

    def _rounds(self, state: State) -> list[list[float]]:
        """The losses of the rounds of the window, oldest first."""
        groups, window = len(state["known"]), state["window"]
        return [window[at : at + groups] for at in range(0, len(window), groups)] if groups else []
