"""The weights of drawn batches on their way to trainers: with the batch, or once the whole step is reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from steelyard import weigh
from steelyard_server.core.events import BatchDrawn, Float32s
from steelyard_server.runs import rules
from steelyard_server.runs.errors import Unready
from steelyard_server.runs.messages import Outbox, Weighing, Weights
from steelyard_server.runs.state import RunState
from steelyard_server.runs.steps import StepRecord


def weighing_of(rule: weigh.Rule) -> Weighing:
    """What a trainer has to do for the weights of a rule."""
    if rules.at_draw(rule):
        return Weighing.DRAW
    if rule.remembers:
        return Weighing.IN_ORDER
    return Weighing.LOSSES if weigh.server_only(rule) is None else Weighing.SERVER


def draw_weight(rule: weigh.Rule, record: StepRecord, seed: int) -> Float32s | None:
    """float32[B] weights that are known at the draw; None where every one is 1 or the losses decide. Unready: the
    rule failed."""
    return _weights(rule, record, seed) if rules.at_draw(rule) else None


def journaled_weight(rule: weigh.Rule, drawn: BatchDrawn, seed: int) -> Float32s | None:
    """As draw_weight, of a batch that has left memory. Unready: what its weights followed from has left it too."""
    if rules.at_draw(rule) and rules.needs_fold(rule):
        raise Unready(
            f"step {drawn.step} has left memory, and with it what the weigh rule {rule.method!r} had read"
        )
    return draw_weight(rule, StepRecord.of(drawn), seed)


def step_weights(rule: weigh.Rule, record: StepRecord, seed: int) -> Float32s | None:
    """float32[B]: the weights of a step that is weighed, None where every one is 1. Unready: the rule failed."""
    return _weights(rule, record, seed)


def _weights(rule: weigh.Rule, record: StepRecord, seed: int) -> Float32s | None:
    try:
        return rules.weights_of(rule, record, seed)
    except rules.RuleFailed as error:
        raise Unready(str(error)) from error


class StepWeights:
    """The loss-dependent weights of closed steps, and the trainers that wait for them."""

    def __init__(self) -> None:
        self._known: dict[int, Float32s] = {}
        self._waiting: dict[int, list[tuple[int, int, Outbox]]] = {}

    def ask(self, step: int, offset: int, count: int, outbox: Outbox) -> None:
        self._waiting.setdefault(step, []).append((offset, count, outbox))

    def awaited_steps(self) -> set[int]:
        """The steps whose weights a trainer waits for."""
        return set(self._waiting)

    def awaited_below(self, stop: int, state: RunState) -> list[StepRecord]:
        """Those of the steps below `stop` that are in memory."""
        return [state.steps[step] for step in sorted(self._waiting) if step < stop and step in state.steps]

    def forget_waiters(self) -> None:
        self._waiting.clear()

    def answers(
        self, state: RunState, expired: Sequence[StepRecord] = ()
    ) -> Iterator[tuple[Outbox, Weights | Unready]]:
        """What the waiters of each step get that can be weighed now; `expired`: steps that have just left memory. They
        are then no longer waiting. Unready: the rule failed."""
        left = {record.drawn.step: record for record in expired}
        for step in sorted(self._waiting):
            record = state.steps.get(step) or left.get(step)
            if record is None or not rules.is_weighed(state.rule_of(step), record):
                continue
            for offset, count, outbox in self._waiting.pop(step):
                try:
                    weights = self.of(state, record)
                except Unready as failure:
                    yield outbox, failure
                else:
                    yield outbox, Weights(step, offset, weights[offset : offset + count])

    def of(self, state: RunState, record: StepRecord) -> Float32s:
        """float32[B]: the weights of a step that is weighed, over the positions that were reported. Unready: the rule
        failed."""
        step = record.drawn.step
        if step not in self._known:
            weights = step_weights(state.rule_of(step), record, state.spec.seed)
            self._known[step] = np.ones(len(record.reported), np.float32) if weights is None else weights
            for old in [known for known in self._known if known < step - 64]:
                del self._known[old]
        return self._known[step]
