"""A draw that fails behind the fold leaves nothing that a replay would not make."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest

from steelyard.source import Source
from steelyard_server.core.events import RunCreated
from steelyard_server.history.store import Store
from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw import METHODS
from steelyard_server.policies.draw.engines.refreshed import RefreshedDraw
from steelyard_server.policies.draw.rows import Float64s, Moment, Rows
from steelyard_server.runs.errors import Unready
from steelyard_server.runs.journaled import CheckpointRule
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.messages import Join, Outgoing, Report, Slice
from steelyard_server.runs.run import Run
from steelyard_server.runs.state import RunState

LONG = 30.0
FAILS_AT = 2


class Brittle(RefreshedDraw):
    """Fails at a step."""

    source: ClassVar[Source] = Source("nowhere", "this test")
    never_reported: ClassVar[str] = "Drawn alike."
    method: Literal["brittle"] = "brittle"
    refresh_steps: int | None = 1
    kind: Literal["value", "other"] = "value"

    @property
    def derived(self) -> tuple[Derived, ...]:
        return (Derived("last", "loss"),)

    @property
    def static(self) -> tuple[str, ...]:
        return ()

    def weights(self, rows: Rows, moment: Moment) -> Float64s:
        if moment.step == FAILS_AT:
            raise ValueError("planted") if self.kind == "value" else KeyError("planted")
        return np.ones(rows.size)


class Trainer:
    """Reports a loss of 1 for each example of whatever it is sent."""

    def __init__(self, run: Run) -> None:
        self.run, self.over = run, threading.Event()
        self.error: Exception | None = None

    def send(self, message: Outgoing) -> None:
        if isinstance(message, Slice):
            losses = np.ones(len(message.drawn.ids), np.float32)
            report = Report(message.drawn.step, 0, message.drawn.digest, {"loss": losses}, False)
            self.run.take(self, [report])

    def end(self, error: Exception | None) -> None:
        if not self.over.is_set():
            self.error = error
            self.over.set()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    METHODS.register(Brittle)
    store = Store.open(tmp_path)
    yield store
    store.close()
    METHODS.forget("brittle")


def opened(store: Store) -> Run:
    rule = CheckpointRule()
    return Run(store, lambda: RunLog(store, 1, 8), "r", rule=rule, reconcile=lambda state: [])


@pytest.mark.parametrize("kind", ["value", "other"])
def test_a_run_whose_method_failed_goes_on_as_its_journal_says(
    store: Store, make_run: Callable[..., RunState], kind: str
) -> None:
    draw = {"method": "brittle", "kind": kind}
    spec = make_run(40, draw=draw, staleness=1, history_size=8).spec.model_dump(mode="json")
    store.commit(RunLog(store, 1, 8).create(RunCreated(spec, 40))[1])
    run = opened(store)
    trainer = Trainer(run)
    run.join(Join(0, 1, 0, "a", "s", None, None, 8), trainer)
    assert trainer.over.wait(LONG)
    assert isinstance(trainer.error, Unready), trainer.error
    assert "planted" in str(trainer.error)
    run.change_policy({"method": "scored", "score": "mean_loss"}, None)
    everything = np.arange(40)
    counted = run.column("count_loss", everything)
    folded = run.ask(lambda state: (state.folded_steps, state.folded_reports))
    assert run.close(LONG)

    again = opened(store)
    assert again.ask(lambda state: (state.folded_steps, state.folded_reports)) == folded
    np.testing.assert_array_equal(again.column("count_loss", everything), counted)
    assert again.close(LONG)
