"""Columns that a draw keeps for itself: saved, replayed, taken back and given up with their run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from steelyard_server.core import events as e
from steelyard_server.runs import snapshot
from steelyard_server.runs.frozen import freeze
from steelyard_server.runs.state import RunState

SIZE = 40
REFRESHED = {"method": "rank_based", "refresh_steps": 3}
DRAWS: dict[str, dict[str, Any]] = {
    "rank_based": REFRESHED,
    "grad_norm_mix": {"method": "grad_norm_mix", "refresh_steps": 3, "total_epochs": 3, "signal": "loss"},
    "loss_history": {"method": "loss_history", "stale_after": 2},
    "utility_decay": {"method": "utility_decay", "bucket": None, "half_lives": [1.0]},
    "gumbel": {"method": "scored", "transform": "gumbel", "refresh_steps": 3, "keep": 0.4},
}


def step(run: RunState) -> list[e.Event]:
    """Draws a batch, reports it, and lets a few things happen now and then. The events."""
    drawn = run.draw()
    losses = ((drawn.ids * 7 + drawn.step * 13) % 31).astype(np.float32)
    events: list[e.Event] = [drawn, e.LossesReported(drawn.step, 0, {"loss": losses})]
    if drawn.step == 4:
        events.append(e.DatasetGrown(run.examples.size + 5))
    if drawn.step == 7:
        events.append(e.IdsRetired(np.array([1, 3, 42])))
    for event in events:
        run.apply(event)
    return events


def restored(run: RunState) -> RunState:
    """From a checkpoint of now."""
    taken = snapshot.take(run)
    return snapshot.restore(json.loads(json.dumps(taken.meta)), dict(taken.blobs), dict(taken.columns))


def assert_same(one: RunState, other: RunState) -> None:
    assert one.get_drawer_state() == other.get_drawer_state()
    assert one.examples.columns.keys() == other.examples.columns.keys()
    for name, column in one.examples.columns.items():
        np.testing.assert_array_equal(column, other.examples.columns[name], err_msg=name)


def assert_goes_on_alike(one: RunState, other: RunState, steps: int) -> None:
    for _ in range(steps):
        mine, theirs = step(one)[0], step(other)[0]
        assert isinstance(mine, e.BatchDrawn)
        assert isinstance(theirs, e.BatchDrawn)
        assert mine.ids.tolist() == theirs.ids.tolist()
        if mine.probability is not None and theirs.probability is not None:
            assert mine.probability.tolist() == theirs.probability.tolist()
    one.check()
    other.check()
    assert_same(one, other)


def lived(run: RunState, steps: int) -> list[e.Event]:
    return [event for _ in range(steps) for event in step(run)]


def replayed(run: RunState, events: Sequence[e.Event]) -> RunState:
    again = RunState(e.RunCreated(run.spec.model_dump(mode="json"), SIZE))
    for event in events:
        again.apply(event)
    return again


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("steps", [2, 3, 5, 8])
def test_a_checkpoint_holds_them(make_run: Any, draw: dict[str, Any], steps: int) -> None:
    run = make_run(SIZE, draw=draw, staleness=1)
    lived(run, steps)
    again = restored(run)
    assert_same(run, again)
    assert_goes_on_alike(run, again, 6)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("staleness", [0, 2, "any"])
def test_replay_gives_those_of_the_undisturbed_fold(
    make_run: Any, draw: dict[str, Any], staleness: Any
) -> None:
    run = make_run(SIZE, draw=draw, staleness=staleness)
    events = lived(run, 10)
    assert_goes_on_alike(run, replayed(run, events), 4)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_batch_that_was_asked_for_and_never_journaled_leaves_nothing_that_a_replay_lacks(
    make_run: Any, draw: dict[str, Any]
) -> None:
    """The refresh of a draw is made before its event is: a server killed between the two makes it again."""
    run = make_run(SIZE, draw=draw, staleness=0)
    events = lived(run, 6)
    asked = run.draw()
    assert run.draw().ids.tolist() == asked.ids.tolist()
    assert_goes_on_alike(run, replayed(run, events), 3)


@pytest.mark.parametrize("back", [3, 5, 6])
def test_going_back_across_a_refresh_is_the_fold_up_to_there(make_run: Any, back: int) -> None:
    """As a rewind and a fork do: the newest checkpoint before, and the journal up to the step."""
    run = make_run(SIZE, draw=REFRESHED, staleness=0)
    lived(run, 2)
    past = restored(run)
    later = lived(run, 8)
    for event in later[: later.index(drawn_at(later, back))]:
        past.apply(event)
    assert past.next_step == back
    assert past.get_drawer_state() != run.get_drawer_state()
    again = [event.ids.tolist() for event in lived(past, 10 - back) if isinstance(event, e.BatchDrawn)]
    assert again == [drawn_at(later, step).ids.tolist() for step in range(back, 10)]
    assert_same(past, run)


def drawn_at(events: Sequence[e.Event], step: int) -> e.BatchDrawn:
    return next(event for event in events if isinstance(event, e.BatchDrawn) and event.step == step)


def test_a_save_under_way_has_the_weights_of_before_when_a_refresh_writes_all(make_run: Any) -> None:
    size = 3 * 65536 + 100
    run = make_run(size, draw=REFRESHED, staleness=0)
    run.apply(e.SignalsObserved(None, np.arange(size), {"loss": (np.arange(size) % 97).astype(np.float32)}))
    lived(run, 2)
    before = {name: column.copy() for name, column in run.examples.columns.items()}
    state = run.get_drawer_state()
    frozen = freeze(run, 1, b"")
    frozen.begin(run)
    assert not any(flags.any() for flags in run.dirty.values())
    # The first part is read before the refresh, the others after it.
    read = {name: [column.read(0, 65536)] for name, column in frozen.columns.items()}
    run.apply(e.SignalsObserved(None, np.arange(size), {"loss": (np.arange(size) % 89).astype(np.float32)}))
    lived(run, 3)
    assert not np.array_equal(run.examples.columns["own:weight"], before["own:weight"])
    assert all(flags.all() for flags in run.dirty.values()), "a refresh is to be saved next time"
    for name, column in frozen.columns.items():
        read[name].append(column.read(65536, size))
        np.testing.assert_array_equal(np.concatenate(read[name])[:size], before[name], err_msg=name)
    assert frozen.rest.meta["drawer"] == state
    frozen.end(run, saved=True)


@pytest.mark.parametrize("after", ["grad_norm_mix", "loss_history", "utility_decay", "gumbel"])
def test_another_method_begins_afresh_and_so_does_the_first_when_it_comes_back(
    make_run: Any, after: str
) -> None:
    run = make_run(SIZE, draw=REFRESHED, staleness=0)
    lived(run, 5)
    assert not np.isnan(run.examples.columns["own:weight"][:SIZE]).any()
    for draw in (DRAWS[after], REFRESHED):
        run.apply(e.PolicyChanged({"draw": draw, "weigh": {"method": "uniform"}}))
        own = [name for name in run.examples.columns if name.startswith("own:")]
        assert set(own) == set(run.policy.own)
        for name in own:
            assert np.isnan(run.examples.columns[name]).all(), name
        assert run.get_drawer_state() is None
        assert_goes_on_alike(run, restored(run), 4)


def test_a_change_of_the_weigher_alone_leaves_them(make_run: Any) -> None:
    run = make_run(SIZE, draw=REFRESHED, staleness=0)
    lived(run, 5)
    before, state = run.examples.columns["own:weight"].copy(), run.get_drawer_state()
    run.apply(e.PolicyChanged({"draw": run.spec.draw, "weigh": {"method": "importance"}}))
    np.testing.assert_array_equal(run.examples.columns["own:weight"], before)
    assert run.get_drawer_state() == state


def test_asking_a_run_about_its_draw_writes_none(make_run: Any) -> None:
    for draw in DRAWS.values():
        run = make_run(SIZE, draw=draw)
        drawer = run.peek_drawer()
        assert drawer.drawable == SIZE
        assert 0 < drawer.effective_sample_ratio() <= 1
        drawer.check()
        assert run.get_drawer_state() is None
        for name in run.policy.own:
            assert np.isnan(run.examples.columns[name]).all()
