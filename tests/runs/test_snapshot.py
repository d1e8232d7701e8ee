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
