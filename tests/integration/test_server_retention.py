"""Retention of a served run: what bookmarks hold is there after all around it is gone, and its cost is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard.testing import server

SCORED = {"method": "scored", "score": "last_loss", "transform": "power", "alpha": 1.0, "floor": 0.1}
SETTINGS: dict[str, Any] = {"checkpoint_interval_seconds": 0.2}
WAIT = 60.0
WINDOW = 256
"""Steps whose reports a run takes: an island does not end before."""


def train(run: steelyard.Run, steps: int) -> list[list[int]]:
    with run.join(prefetch=2, timeout=WAIT) as session:
        served = []
        for _ in range(steps):
            batch = session.next()
            session.report(batch, np.asarray(1.0 + batch.ids % 7 + batch.step / 8, np.float32))
            served.append(batch.ids.tolist())
        session.flush(WAIT)
    return served


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < deadline, f"{what} within {WAIT} s"
        time.sleep(0.1)


def test_bookmarks_outlive_what_lies_between_them_and_say_what_they_cost(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"dataset": "d", "batch_size": 8, "seed": 3, "staleness": 2, "draw": SCORED}
    with server(tmp_path, **SETTINGS) as client:
        client.create_dataset("d", 60)
        whole = client.create_run("whole", **fields)
        run = client.create_run("run", retain_steps=20, **fields)
        served = train(run, 5)
        assert run.bookmark("five") == 5
        served += train(run, 35)
        assert run.bookmark("forty") == 40
        before = run.retention()
        assert {name: one.step for name, one in before.bookmarks.items()} == {"five": 5, "forty": 40}
        assert before.bookmarks["forty"].journal_bytes == 0, "among the last twenty"
        assert (before.oldest_step, before.journal_bytes) == (0, run.stats().journal_bytes)
        for _ in range(6):
            served += train(run, 60)
            time.sleep(0.5)
        assert train(whole, len(served)) == served
        eventually(lambda: run.info().oldest_step > 40 + WINDOW, "old steps are pruned")

    with server(tmp_path, **SETTINGS) as client:
        whole, run = client.run("whole"), client.run("run")
        kept = run.retention()
        assert kept.oldest_step == run.info().oldest_step <= 380
        assert kept.journal_bytes == run.stats().journal_bytes
        assert kept.bookmarks["five"].step == 5
        assert kept.bookmarks["forty"].journal_bytes > 0
        assert kept.checkpoints >= 2
        assert kept.checkpoint_bytes > 0
        assert kept.history_bytes > 0
        whole_bytes = whole.retention().journal_bytes
        islands = sum(one.journal_bytes for one in kept.bookmarks.values())
        assert kept.journal_bytes < kept.journal_bytes + islands < whole_bytes
        assert [run.batch(step).ids.tolist() for step in (5, 40, 400 - 1)] == [
            served[5],
            served[40],
            served[399],
        ]
        gone = kept.oldest_step - 1
        with pytest.raises(steelyard.NotFound, match=f"holds no batch of step {gone}"):
            run.batch(gone)
        expected = (
            rf"{kept.oldest_step}, the oldest retained.*that of a bookmark \('five' at 5, 'forty' at 40\)"
        )
        with pytest.raises(steelyard.FailedPrecondition, match=expected):
            run.rewind(gone)
        with pytest.raises(steelyard.FailedPrecondition, match="that of a bookmark"):
            run.bookmark("other", 30)
        assert run.bookmark("again", 40) == 40
        for name, step in (("five", 5), ("forty", 40)):
            assert train(run.fork(f"fork-{step}", step=name), 20) == served[step : step + 20]

        run.delete_bookmark("forty")
        assert run.retention().bookmarks["again"].journal_bytes == kept.bookmarks["forty"].journal_bytes
        run.delete_bookmark("again")
        eventually(lambda: _holds_no_batch(run, 5 + WINDOW + 1), "the island of a deleted bookmark is pruned")
        assert run.batch(5).ids.tolist() == served[5]
        assert run.rewind("five").next_step == 5
        assert train(run, 30) == served[5:35]
        assert run.retention().oldest_step <= 5


def _holds_no_batch(run: steelyard.Run, step: int) -> bool:
    try:
        run.batch(step)
    except steelyard.NotFound:
        return True
    return False
