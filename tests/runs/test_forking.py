"""A fork is made beside its run, which goes on; only what the fork still reads stays where it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from steelyard_server.history.store import Store
from steelyard_server.runs.catalog import Catalog
from steelyard_server.runs.journaled import CheckpointRule
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.run import Run
from steelyard_server.runs.spec import parse_spec
from steelyard_server.runs.state import RunState

LONG = 30.0


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    store = Store.open(tmp_path)
    catalog = Catalog(store, CheckpointRule(), 1 << 24)
    catalog.create_dataset("d", 20, fingerprint="", exist_ok=False)
    spec = {
        "name": "r",
        "dataset": "d",
        "batch_size": 4,
        "draw": {"method": "shuffle"},
        "weigh": {"method": "uniform"},
    }
    catalog.create_run(parse_spec(spec), exist_ok=False)
    yield catalog.run("r")
    catalog.close(LONG)
    store.close()


class SlowFork:
    """A fork that is in the middle of its reading until it is told to end."""

    def __init__(self, run: Run) -> None:
        self.reads, self.ends = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=run.fork, args=(0, self._new))
        self._thread.start()
        assert self.reads.wait(LONG)

    def _new(self, state: RunState, log: RunLog, cut: int) -> None:
        self.reads.set()
        assert self.ends.wait(LONG)

    def end(self) -> None:
        self.ends.set()
        self._thread.join(LONG)
        assert not self._thread.is_alive()


def test_a_run_answers_while_it_is_forked(run: Run) -> None:
    fork = SlowFork(run)
    assert run.bookmark("here", 0) == 0
    assert run.info().bookmarks == {"here": 0}
    fork.end()


def test_a_run_goes_back_once_nobody_reads_what_that_undoes(run: Run) -> None:
    forks = [SlowFork(run), SlowFork(run)]
    back = threading.Thread(target=run.rewind, args=(0,))
    back.start()
    forks[0].end()
    back.join(0.3)
    assert back.is_alive()
    forks[1].end()
    back.join(LONG)
    assert not back.is_alive()


def test_a_fork_that_fails_lets_go(run: Run) -> None:
    def fail(state: RunState, log: RunLog, cut: int) -> None:
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        run.fork(0, fail)
    assert run.rewind(0).next_step == 0
