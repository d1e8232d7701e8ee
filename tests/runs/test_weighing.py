"""Weights of a step: at its draw, and over what was reported of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from steelyard import weigh
from steelyard_server.core import events as e
from steelyard_server.runs.messages import Outgoing, Weights
from steelyard_server.runs.steps import StepRecord
from steelyard_server.runs.weighing import StepWeights, draw_weight

LINUPPER = {"method": "linupper", "r": 0.4}
LOSSES = np.array([0.5, 2.0, 1.0, 4.0, 3.0, 0.25], np.float32)


class Kept:
    """An outbox that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[Outgoing] = []

    def send(self, message: Outgoing) -> None:
        self.messages.append(message)

    def end(self, error: Exception | None) -> None:
        raise AssertionError(error)


def test_a_step_that_was_closed_early_is_weighed_over_what_was_reported(make_run: Any) -> None:
    run = make_run(draw={"method": "shuffle"}, weigh=LINUPPER)
    run.apply(run.draw())
    run.apply(e.LossesReported(0, 1, {"loss": LOSSES[1:4]}))
    run.apply(e.StepClosed(0, "timeout"))
    weights = StepWeights().of(run, run.steps[0])
    alone = weigh.weights(LOSSES[1:4], LINUPPER)
    assert weights.tolist() == [0, *np.asarray(alone, np.float32).tolist(), 0, 0]
    assert weights.sum() == pytest.approx(3, rel=1e-6)


def test_a_step_that_nobody_reported_has_no_weight(make_run: Any) -> None:
    run = make_run(draw={"method": "shuffle"}, weigh=LINUPPER)
    run.apply(run.draw())
    run.apply(e.StepClosed(0, "owner"))
    assert StepWeights().of(run, run.steps[0]).tolist() == [0] * 6


def test_each_waiter_is_answered_once_with_its_slice(make_run: Any) -> None:
    run = make_run(draw={"method": "shuffle"}, weigh=LINUPPER)
    run.apply(run.draw())
    run.apply(e.LossesReported(0, 0, {"loss": LOSSES}))
    weights, outbox = StepWeights(), Kept()
    weights.ask(0, 0, 4, outbox)
    weights.ask(0, 4, 2, outbox)
    answers = [message for _, message in weights.answers(run) if isinstance(message, Weights)]
    assert (
        np.concatenate([answer.weights for answer in answers]).tolist()
        == weigh.weights(LOSSES, LINUPPER).tolist()
    )
    assert [answer.offset for answer in answers] == [0, 4]
    assert list(weights.answers(run)) == []


def test_a_draw_is_weighed_at_once_where_only_its_probability_counts(make_run: Any) -> None:
    importance = {"method": "importance"}
    shuffled = StepRecord.of(make_run(draw={"method": "shuffle"}, weigh=importance).draw())
    assert draw_weight(weigh.parse(importance), shuffled, 1) == pytest.approx([1.0] * 6)
    assert draw_weight(weigh.parse({"method": "uniform"}), shuffled, 1) is None
    assert draw_weight(weigh.parse(LINUPPER), shuffled, 1) is None
    run = make_run(weigh=importance, staleness="any")
    run.apply(e.SignalsObserved(0, np.arange(40), {"loss": np.linspace(1, 3, 40).astype(np.float32)}))
    run.apply(e.IdsRetired(np.arange(4)))
    drawn = run.draw()
    assert drawn.probability is not None
    assert draw_weight(weigh.parse(importance), StepRecord.of(drawn), 1) == pytest.approx(
        (1 / (36 * drawn.probability)).tolist()
    )
