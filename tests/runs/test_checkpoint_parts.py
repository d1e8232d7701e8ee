"""A checkpoint is written in parts: what one that was broken off leaves behind is of no run."""

import time

import numpy as np
import pytest

from steelyard.testing import server
from steelyard_server.history.errors import StoreFailed, StoreFull
from steelyard_server.history.ops import Put, Table
from steelyard_server.history.store import Store
from steelyard_server.runs import journaled

SCORED = {"method": "scored", "score": "ema_loss", "transform": "power", "alpha": 1.0, "floor": 0.1}
SIZE = 300
_LOOSE = (Table.CHUNKS, Table.HISTORY, Table.SEGMENTS)


def train(run, steps):
    with run.join(prefetch=1, timeout=60) as session:
        served = []
        for _ in range(steps):
            batch = session.next()
            session.report(batch, np.asarray(1.0 + batch.ids % 7 + batch.step / 8, np.float32))
            served.append(batch.ids.tolist())
        session.flush(60)
    return served


def create(client):
    client.create_dataset("d", SIZE)
    return client.create_run("r", dataset="d", batch_size=16, draw=SCORED, history_size=4, staleness=1)


def seen(run):
    before = run.history(range(SIZE))
    # To where the columns do not depend on how far ahead was drawn.
    run.rewind(58)
    return (
        before,
        run.history(range(SIZE)),
        np.nan_to_num(run.column("ema_loss"), nan=-1).tolist(),
        run.batch(3).ids.tolist(),
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with server(tmp_path_factory.mktemp("calm")) as client:
        run = create(client)
        served = train(run, 60)
        forked = run.fork("f", step=40).history(range(SIZE))
        return served, forked, seen(run)


def broken_off(monkeypatch, error, parts):
    """Of each checkpoint, `parts` parts are written, and the next is not; how often."""
    commit, count, broken = Store.commit, [0], []

    def commit_some(self, ops, *, frees=False):
        versions = [op for op in ops if isinstance(op, Put) and op.table in _LOOSE]
        row = [op for op in ops if isinstance(op, Put) and op.table is Table.CHECKPOINTS]
        if versions or row:
            count[0] += 1
            if count[0] > parts or row:
                count[0] = 0
                broken.append(1)
                raise error("planted")
        commit(self, ops, frees=frees)

    monkeypatch.setattr(Store, "commit", commit_some)
    return broken


@pytest.mark.parametrize("error", [StoreFailed, StoreFull])
@pytest.mark.parametrize("parts", [0, 1, 3, 1000])
def test_a_checkpoint_broken_off_anywhere_changes_nothing(tmp_path, monkeypatch, undisturbed, error, parts):
    monkeypatch.setattr(journaled, "_PART_BYTES", 4096)
    monkeypatch.setattr(journaled, "_RETRY_SECONDS", 0.0)
    calm_served, calm_forked, calm_seen = undisturbed
    settings = {"checkpoint_interval_seconds": 0.05}
    with server(tmp_path, **settings) as client:
        run = create(client)
        served = train(run, 20)
        with monkeypatch.context() as patch:
            broken = broken_off(patch, error, parts)
            while len(broken) < 2:
                served += train(run, 1)
                before, deadline = len(broken), time.monotonic() + 30
                while len(broken) == before:
                    assert time.monotonic() < deadline, "no checkpoint was tried within 30 s"
                    time.sleep(0.01)
            history = run.history(range(SIZE))
        with server(tmp_path / "same") as calm:
            twin = create(calm)
            assert train(twin, len(served)) == served
            assert twin.history(range(SIZE)) == history
        served += train(run, 55 - len(served))
    with server(tmp_path, **settings) as client:
        run = client.run("r")
        served += train(run, 5)
        assert served == calm_served
        assert run.fork("f", step=40).history(range(SIZE)) == calm_forked
        assert seen(run) == calm_seen
