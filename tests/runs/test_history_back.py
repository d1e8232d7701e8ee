"""Going back leaves every loss in the history once, whatever checkpoints were made and pruned meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steelyard_server.core.events import AttemptBegan, LossesReported, RunCreated
from steelyard_server.history.store import Store
from steelyard_server.runs.journaled import CheckpointRule, Journaled
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.state import RunState

SIZE = 40


@pytest.fixture
def run(tmp_path: Path, make_run: Callable[..., RunState]) -> Iterator[Journaled]:
    store = Store.open(tmp_path)
    log = RunLog(store, 1, 8)
    spec = make_run(SIZE, draw={"method": "shuffle"}).spec
    store.commit(log.create(RunCreated(spec.model_dump(mode="json"), SIZE))[1])
    yield Journaled(
        store,
        lambda: RunLog(store, 1, 8),
        "r",
        rule=CheckpointRule(),
        reconcile=lambda state: [],
        post=lambda call: call(),
        on_lost=lambda: None,
        on_replaced=lambda: None,
    )
    store.close()


def draw(run: Journaled) -> None:
    run.write_and_wait([run.state().draw()])


def report(run: Journaled, losses_of: Callable[..., LossesReported], step: int) -> None:
    run.write_and_wait([losses_of(step, [step + 1.0] * 6)])


def history(run: Journaled) -> list[Any]:
    found = run.log.history(run.state().steps[1].drawn.ids, run.state().unsaved_history)
    return [row for rows in found for row in rows]


@pytest.mark.parametrize("saved_again", [False, True])
def test_a_loss_is_there_once_after_going_back_behind_a_checkpoint_that_was_pruned(
    run: Journaled, losses_of: Callable[..., LossesReported], saved_again: bool
) -> None:
    for step in (0, 1):
        draw(run)
        report(run, losses_of, step)
        run.checkpoint()
    draw(run)
    run.checkpoint()  # the one after step 1 is worth no more space; what it wrote of the history is the newest still
    assert [step for _, step in run.log._checkpoints.list()] == [1, 3]
    run.rewind(2, AttemptBegan("b", 1, 2))
    if saved_again:
        run.checkpoint()
    assert history(run) == [(1, 2.0)] * 6
    run.load()  # as a server does that was killed here
    assert history(run) == [(1, 2.0)] * 6
