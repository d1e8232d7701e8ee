"""What a checkpoint must not forget. That it forgets nothing at all is tried by the machine in test_fold."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from steelyard_server.core import events as e
from steelyard_server.runs import snapshot
from steelyard_server.runs.state import RunState


def restored(run: RunState) -> RunState:
    taken = snapshot.take(run)
    return snapshot.restore(json.loads(json.dumps(taken.meta)), taken.blobs, taken.columns)


def test_a_restored_run_hears_of_a_column_that_outgrows_the_scale_like_the_live_one(make_run: Any) -> None:
    """The drawer of a restored run is not built yet, and its stored scale is from before the change."""
    draw = {"method": "scored", "score": "quality", "sampling": "independent"}
    live = make_run(draw=draw, staleness="any")
    live.apply(e.ColumnSet("quality", np.arange(40), np.ones(40, np.float32)))
    live.apply(live.draw())
    again = restored(live)
    change = e.ColumnSet("quality", np.arange(2), np.array([1e30, 3e30], np.float32))
    for run in (live, again):
        run.apply(change)
        run.check()
    assert again.get_drawer_state() == live.get_drawer_state()
    mine, theirs = live.draw(), again.draw()
    assert mine.ids.tolist() == theirs.ids.tolist()
    assert mine.probability is not None
    assert theirs.probability is not None
    assert mine.probability.tolist() == theirs.probability.tolist()


def test_a_restored_run_owns_its_arrays(make_run: Any, losses_of: Any) -> None:
    live = make_run(staleness=0)
    live.apply(live.draw())
    live.apply(e.SignalsObserved(5, np.array([1]), {"loss": np.array([2.0], np.float32)}))
    again = restored(live)
    again.apply(losses_of(0, [1, 2, 3, 4, 5, 6]))
    again.apply(again.draw())
    again.apply(e.Bookmarked("here", 1))
    assert not live.steps[0].reported.any()
    assert np.isnan(live.examples.columns["last_loss"]).all()
    assert live.bookmarks == {}


def test_asking_a_run_about_its_draw_does_not_change_it(make_run: Any) -> None:
    run = make_run()
    assert run.get_drawer_state() is None
    assert run.peek_drawer().drawable == 40
    assert run.get_drawer_state() is None


def test_a_restored_run_knows_what_the_draw_gave_each(make_run: Any) -> None:
    live = make_run()
    weight = np.array([1, 2.5, 0, 1e-38, 7, 1 / 3], np.float32)
    live.apply(dataclasses.replace(live.draw(), weight=weight))
    live.apply(live.draw())
    again = restored(live)
    assert again.steps[0].drawn.weight is not None
    assert again.steps[0].drawn.weight.tobytes() == weight.tobytes()
    assert again.steps[1].drawn.weight is None


def test_a_restored_run_remembers_what_its_weigh_rule_does(make_run: Any) -> None:
    """Also of a step that is drawn and not closed: the columns that the rule read are those as of its draw."""
    rule = {"method": "reducr", "keep": 0.5, "eta": 1.0}
    live = make_run(draw={"method": "shuffle"}, weigh=rule)
    columns = {"group": np.arange(40) % 2, "reference_0": np.arange(40) / 9, "reference_1": np.arange(40) % 5}

    def report(run: RunState, step: int) -> None:
        losses = (run.steps[step].drawn.ids * 7 % 11).astype(np.float32)
        run.apply(e.LossesReported(step, 0, {"loss": losses}))

    for name, values in columns.items():
        live.apply(e.ColumnSet(name, np.arange(40), values.astype(np.float32)))
    for step in range(6):
        live.apply(live.draw())
        if step < 3:
            report(live, step)
    report(live, 4)
    live.apply(e.ColumnSet("reference_0", np.arange(40), np.zeros(40, np.float32)))
    again = restored(live)
    for run in (live, again):
        for step in (3, 5):
            report(run, step)
    assert live.closed_memory is not None
    assert again.closed_memory is not None
    for name, values in live.closed_memory.past.items():
        np.testing.assert_array_equal(again.closed_memory.past[name], values)
    for step in range(6):
        mine, theirs = live.steps[step].weights, again.steps[step].weights
        assert mine is not None
        assert theirs is not None
        assert mine.tobytes() == theirs.tobytes()
    forgetful = restored(live)
    forgetful.closed_memory = None
    for run in (live, forgetful):
        run.apply(run.draw())
        report(run, 6)
    assert forgetful.closed_memory is not None
    assert live.closed_memory.past["total"].tolist() != forgetful.closed_memory.past["total"].tolist()


def test_a_state_of_before_there_were_memories_is_given_time_to_hear_its_signals(make_run: Any) -> None:
    live = make_run(
        draw={"method": "scored", "score": "last_el2n", "sampling": "independent"}, staleness="any"
    )
    for step in range(20):
        live.apply(live.draw())
        live.apply(e.LossesReported(step, 0, {"loss": np.ones(6, np.float32)}))
    assert [one.name for one in live.missing_signals()] == ["el2n"]
    taken = snapshot.take(live)
    older = {
        name: value for name, value in taken.meta.items() if name not in ("heard", "policy_since", "memories")
    }
    again = snapshot.restore(json.loads(json.dumps(older)), taken.blobs, taken.columns)
    assert again.missing_signals() == ()
