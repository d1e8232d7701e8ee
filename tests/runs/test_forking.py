"""A fork is made beside its run, which goes on; only what the fork still reads stays where it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard.testing import server
from steelyard_server.history.chunks import CHUNK
from steelyard_server.history.errors import StoreFailed
from steelyard_server.history.ops import Delete, Fence, Op, Put, Table, prefix_range, weight
from steelyard_server.history.store import Store
from steelyard_server.runs import catalog as catalog_module
from steelyard_server.runs.catalog import Catalog
from steelyard_server.runs.journaled import CheckpointRule
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.run import Run
from steelyard_server.runs.spec import parse_spec
from steelyard_server.runs.state import RunState

LONG = 30.0
OF_RUNS = [table for table in Table if table not in (Table.META, Table.DATASETS, Table.RUNS)]


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


BIG = 9 * CHUNK + 5
SCORED: dict[str, Any] = {
    "draw": {"method": "scored", "score": "last_loss"},
    "batch_size": 64,
    "history_size": 2,
}


def big_run(client: steelyard.Client) -> steelyard.Run:
    client.create_dataset("d", BIG)
    run = client.create_run("r", dataset="d", **SCORED)
    run.observe(np.arange(BIG), np.arange(BIG, dtype=np.float32) % 5)
    return run


def test_a_fork_is_written_in_parts_between_which_others_have_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    commit = Store.commit

    def noted(store: Store, ops: Sequence[Op], *, frees: bool = False) -> None:
        sizes.append(sum(map(weight, ops)))
        commit(store, ops, frees=frees)

    with server(tmp_path) as client:
        run = big_run(client)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "commit", noted)
            forked = run.fork("f", step=0)
        assert sum(sizes) > 8 * BIG
        assert max(sizes) < (1 << 20) + 5 * CHUNK
        assert forked.column("last_loss").tobytes() == run.column("last_loss").tobytes()
        some = np.arange(0, BIG, 997)
        assert forked.history(some) == run.history(some)


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_is_deleted_in_small_parts_and_is_gone_with_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    commit, parts = Store.commit, list[Sequence[Op]]()

    def watched(store: Store, ops: Sequence[Op], *, frees: bool = False) -> None:
        if ops and not any(isinstance(op, Put | Fence) for op in ops):
            parts.append(ops)
            if fails and len(parts) == 3:
                raise StoreFailed("planted")
        commit(store, ops, frees=frees)

    def left(store: Store) -> int:
        return sum(len(store.keys(table, b"\0", b"\xff" * 64)) for table in OF_RUNS)

    monkeypatch.setattr(catalog_module, "_DELETED_BYTES", 1 << 13)
    with server(tmp_path) as client:
        big_run(client)
    # Saved by now.
    with server(tmp_path) as client:
        monkeypatch.setattr(Store, "commit", watched)
        client.delete_run("r")
        assert client.list_runs() == []
    monkeypatch.undo()
    assert parts[0] == [Delete(Table.RUNS, b"r")]
    assert len(parts) > 2
    # No op is of more rows than are deleted in a moment, and no commit of many ops.
    assert max(map(len, parts)) == 1
    store = Store.open(tmp_path)
    assert (left(store) > 0) == fails
    Catalog(store, CheckpointRule(), 1 << 24).close(LONG)
    assert left(store) == 0
    store.close()


@pytest.mark.parametrize("commits", [1, 6])
def test_a_fork_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    commit, left = Store.commit, [commits]

    def failing(store: Store, ops: Sequence[Op], *, frees: bool = False) -> None:
        if any(isinstance(op, Put) and op.table in (Table.CHUNKS, Table.SEGMENTS) for op in ops):
            left[0] -= 1
            if left[0] < 0:
                raise StoreFailed("planted")
        commit(store, ops, frees=frees)

    with server(tmp_path) as client:
        run = big_run(client)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "commit", failing)
            with pytest.raises(steelyard.Unavailable, match="planted"):
                run.fork("f", step=0)
        assert [row.name for row in client.list_runs()] == ["r"]
        assert run.fork("f", step=0).history([7]) == run.history([7])
        client.delete_run("f")
    with server(tmp_path) as client:
        # Where it opens, it sweeps.
        assert [row.name for row in client.list_runs()] == ["r"]
    store = Store.open(tmp_path)
    try:
        owner = store.keys(Table.JOURNAL, b"\0", b"\xff" * 64, limit=1)[0][:8]
        for table in (Table.CHUNKS, Table.SEGMENTS, Table.HISTORY, Table.JOURNAL):
            assert store.keys(table, b"\0", owner) == []
            assert store.keys(table, prefix_range(owner)[1], b"\xff" * 64) == []
    finally:
        store.close()
