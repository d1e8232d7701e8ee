"""A run on disk: what retention keeps can be returned to, to the last step of it."""

import numpy as np
import pytest

from steelyard_server.core.events import AttemptBegan, BatchDrawn, LossesReported, RunCreated
from steelyard_server.history.store import Store
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.spec import parse_spec

BATCH = 4


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path)
    yield store
    store.close()


def spec(**fields):
    values = {"name": "r", "dataset": "d", "batch_size": BATCH, "draw": {"method": "scored"}, "staleness": 0}
    return parse_spec({**values, "weigh": {"method": "uniform"}, **fields})


def train(log, state, store, steps):
    """Draws and reports `steps` steps; returns the ids of each."""
    served = []
    for _ in range(steps):
        drawn = state.draw()
        losses = (drawn.ids % 7 + 1).astype(np.float32)
        events = [drawn, LossesReported(drawn.step, 0, {"loss": losses})]
        for event in events:
            state.apply(event)
        store.commit(log.append(events))
        served.append(drawn.ids.tolist())
    return served


def test_the_oldest_retained_step_can_be_returned_to_where_nothing_before_it_is_left(store):
    log = RunLog(store, 1, 8)
    state, ops = log.create(RunCreated(spec(retain_steps=5).model_dump(mode="json"), 40))
    store.commit(ops)
    train(log, state, store, 10)
    store.commit(log.checkpoint(state))
    after = train(log, state, store, 5)
    store.commit(log.prune(state))
    assert log.oldest_step() == 10
    assert log.journal.first_seq() == log.journal.seq_of_step(10)

    past = log.past(10)
    again = AttemptBegan("again", 1, 10)
    past.state.apply(again)
    store.commit(log.rewind(past, [again]))
    state = log.load()
    assert state.next_step == 10
    assert train(log, state, store, 5) == after
    events = [event for _, event in log.journal.read(log.journal.first_seq())]
    assert [event.step for event in events if isinstance(event, BatchDrawn)] == list(range(10, 15))
