"""The weights of drawn batches: at the draw, or once the whole step is reported."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steelyard import weigh
from steelyard_server.core.events import BatchDrawn, Float32s
from steelyard_server.runs.messages import Outbox, Weights
from steelyard_server.runs.steps import StepRecord


def draw_weight(rule: weigh.Rule, drawn: BatchDrawn) -> Float32s | None:
    """float32[B] weights that follow from the draw alone; None where every one is 1 or the losses decide."""
    if rule.reads != "probability":
        return None
    probability = drawn.probability
    if probability is None:
        probability = np.full(len(drawn.ids), drawn.uniform_probability)
    weights = weigh.weights(
        np.ones(len(drawn.ids), np.float32),
        rule,
        step=drawn.step,
        probability=probability,
        examples=round(1 / drawn.uniform_probability),
    )
    return np.asarray(weights, dtype=np.float32)


def step_weights(rule: weigh.Rule, record: StepRecord) -> Float32s:
    """float32[B]: the weights of a closed step; where losses decide, over the positions that were reported."""
    if rule.reads == "probability":
        weight = draw_weight(rule, record.drawn)
        assert weight is not None
        return weight
    losses = record.signals.get("loss", np.zeros(len(record.reported), np.float32))
    weights = weigh.weights(losses, rule, step=record.drawn.step, mask=record.reported)
    return np.asarray(weights, dtype=np.float32)


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

    def forget_waiters(self) -> None:
        self._waiting.clear()

    def answers(self, rule: weigh.Rule, record: StepRecord) -> Iterator[tuple[Outbox, Weights]]:
        """What the waiters of a closed step get. They are then no longer waiting."""
        step = record.drawn.step
        for offset, count, outbox in self._waiting.pop(step, []):
            yield outbox, Weights(step, offset, self.of(rule, record)[offset : offset + count])

    def of(self, rule: weigh.Rule, record: StepRecord) -> Float32s:
        """float32[B]: the weights of a closed step, over the positions that were reported."""
        step = record.drawn.step
        if step not in self._known:
            self._known[step] = step_weights(rule, record)
            for old in [known for known in self._known if known < step - 64]:
                del self._known[old]
        return self._known[step]
