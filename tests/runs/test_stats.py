"""What a run says about itself costs no pass over its examples that it does not need anyway."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from steelyard_server.core import events as e
from steelyard_server.policies.draw.scored import Scored
from steelyard_server.policies.policy import parse_policy
from steelyard_server.runs import snapshot
from steelyard_server.runs.state import RunState

SIZE = 50
DRAW = {"method": "scored", "score": "quality", "unseen": "mean"}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry a drawer that was made."""
    drawer, entries = Scored.drawer, list[int]()

    def counted(*args: Any, **fields: Any) -> Any:
        entries.append(1)
        return drawer(*args, **fields)

    monkeypatch.setattr(Scored, "drawer", counted)
    return entries


def fresh() -> RunState:
    policy = parse_policy(DRAW, {"method": "uniform"}).canonical()
    rest = {"name": "r", "dataset": "d", "batch_size": 8, "seed": 1, "staleness": 2, "history_size": 2}
    return RunState(e.RunCreated({**rest, "on_nonfinite": "skip", **policy}, SIZE))


def column(values: Any) -> e.ColumnSet:
    return e.ColumnSet("quality", np.arange(SIZE), np.asarray(values, np.float32))


def test_questions_before_the_first_draw_make_what_it_draws_from_once(made: list[int]) -> None:
    run = fresh()
    for _ in range(3):
        assert run.peek_drawer().drawable == SIZE
    run.apply(e.Bookmarked("here", 0))
    run.draw()
    assert len(made) == 1


def test_a_question_changes_no_batch_whatever_comes_behind_it() -> None:
    changes: list[e.Event] = [
        column(np.arange(SIZE) % 7),
        e.IdsRetired(np.array([3, 4])),
        e.DatasetGrown(SIZE + 5),
    ]
    for place in range(len(changes) + 1):
        asked, calm = fresh(), fresh()
        for number, change in enumerate([*changes, None]):
            if number == place:
                asked.peek_drawer()
            if change is not None:
                asked.apply(change)
                calm.apply(change)
        assert asked.get_drawer_state() == calm.get_drawer_state()
        one, other = asked.draw(), calm.draw()
        assert one.ids.tolist() == other.ids.tolist()
        assert np.array_equal(one.probability, other.probability)  # type: ignore[arg-type]
        asked.check()


def test_a_restored_state_that_is_asked_draws_as_one_that_is_not(made: list[int]) -> None:
    run = fresh()
    run.apply(column(np.arange(SIZE) % 7))
    run.apply(run.draw())
    taken = snapshot.take(run)
    asked, calm = (snapshot.restore(taken.meta, taken.blobs, taken.columns) for _ in range(2))
    asked.peek_drawer()
    for state in (asked, calm):
        state.apply(column(np.arange(SIZE) % 5))
    assert asked.draw().ids.tolist() == calm.draw().ids.tolist()
    assert len(made) == 3
