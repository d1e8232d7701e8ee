"""What is looked at of a run while it goes on. Taken on its thread, in O(1) and a sample; worked out elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steelyard import weigh
from steelyard_server.core.events import Float32s
from steelyard_server.policies.draw.contract import LawSummary
from steelyard_server.runs import rules
from steelyard_server.runs.state import RunState
from steelyard_server.runs.steps import StepRecord
from steelyard_server.runs.tally import Tally

SAMPLE = 65536
"""Examples that are looked at, evenly spaced, where a figure would need all of a larger dataset."""
_LOOKED_BACK = 1024
"""Steps among which one with reports is looked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Reported:
    """A closed step of which something was reported, and its weigh rule: nothing changes them any more."""

    record: StepRecord
    rule: weigh.Rule
    seed: int

    def finite_losses(self) -> Float32s:
        losses = self.record.signals["loss"]
        return losses[self.record.reported & np.isfinite(losses)]

    def weights(self) -> Float32s | None:
        """float32[B]; None where the rule gives none."""
        try:
            weights = rules.weights_of(self.rule, self.record, self.seed)
        except rules.RuleFailed:
            return None
        return np.ones(len(self.record.reported), np.float32) if weights is None else weights


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """`law` is None before the first draw; `newest` None where no step in memory has a report."""

    next_step: int
    closed_steps: int
    folded_steps: int
    ranks: int
    drawable: int
    law: LawSummary | None
    newest: Reported | None
    journal_lag: int
    checkpointed_at: float
    tally: Tally


def figures_of(
    state: RunState, tally: Tally, ranks: int, journal_lag: int, checkpointed_at: float, sample: int = SAMPLE
) -> Figures:
    # One that is not there yet is not built for eyes: that is O(size).
    drawer = state.built_drawer
    return Figures(
        next_step=state.next_step,
        closed_steps=state.closed_steps,
        folded_steps=state.folded_steps,
        ranks=ranks,
        drawable=state.examples.size - len(state.examples.retired) if drawer is None else drawer.drawable,
        law=None if drawer is None else drawer.summary(sample),
        newest=_newest_reported(state),
        journal_lag=journal_lag,
        checkpointed_at=checkpointed_at,
        tally=tally.copy(),
    )


def _newest_reported(state: RunState) -> Reported | None:
    for number, step in enumerate(reversed(state.steps)):
        record = state.steps[step]
        if record.closed and record.missing < len(record.reported) and "loss" in record.signals:
            return Reported(record, state.rule_of(step), state.spec.seed)
        if number == _LOOKED_BACK:
            break
    return None
