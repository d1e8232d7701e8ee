"""A disk that stands still for longer than anybody waits: what was given up may become durable yet, and then counts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import steelyard
from steelyard.testing import server
from steelyard_server.history import store

HOLD_THE_WRITE_LOCK = """
import sys, lmdb
with lmdb.open(sys.argv[1], max_dbs=32) as environment, environment.begin(write=True):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def disk_that_stands_still(directory: Path) -> Iterator[None]:
    """Another process holds LMDB's write lock: commits wait, as they do on a disk that does not answer."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_WRITE_LOCK, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.stdin.close()
        assert holder.wait(30) == 0
        holder.stdout.close()


def test_a_write_that_was_given_up_and_became_durable_is_in_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(tmp_path / "s") as client:
        client.create_dataset("d", 40)
        run = client.create_run(
            "r", dataset="d", batch_size=4, staleness=0, draw={"method": "scored", "floor": 0.2}
        )
        with run.join() as session:
            for step in range(3):
                batch = session.next()
                session.report(batch, batch.ids / 7 + step)
        with disk_that_stands_still(tmp_path / "s"):
            monkeypatch.setattr(store, "WAIT_SECONDS", 0.5)
            with pytest.raises(steelyard.Unavailable):
                run.observe([1, 2], [5.0, 6.0])
        monkeypatch.setattr(store, "WAIT_SECONDS", 60.0)
        with run.join() as session:
            for step in range(3, 6):
                batch = session.next()
                session.report(batch, batch.ids / 7 + step)
        columns, batches = run.column("last_loss"), [run.batch(step).digest for step in range(6)]
        observed = [event for event in run.events() if isinstance(event, steelyard.events.SignalsObserved)]
        assert len(observed) == 1
    with server(tmp_path / "s") as client:
        run = client.run("r")
        np.testing.assert_array_equal(run.column("last_loss"), columns)
        assert [run.batch(step).digest for step in range(6)] == batches
