"""A checkpoint is written beside its run, which goes on: it holds the state of one journal position, whatever comes."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard.testing import server
from steelyard_server.core.events import DatasetGrown
from steelyard_server.history.errors import StoreFailed
from steelyard_server.history.ops import Put, Table
from steelyard_server.history.registry import Registry
from steelyard_server.history.store import Store
from steelyard_server.runs import frozen_column, journaled, snapshot
from steelyard_server.runs.frozen import freeze
from steelyard_server.runs.frozen_column import FrozenColumn
from steelyard_server.runs.journaled import Journaled
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.state import RunState

LONG = 60.0
SIZE = 3 * 65536 + 100
SCORED: dict[str, Any] = {"method": "scored", "score": "mean_loss", "floor": 0.1, "sampling": "stratified"}
FIELDS: dict[str, Any] = {"dataset": "d", "batch_size": 64, "draw": SCORED, "history_size": 3, "staleness": 1}
OFTEN = {"checkpoint_interval_seconds": 0.05}
NEVER = {"checkpoint_interval_seconds": 1e6}
BY_SIZE: dict[str, Any] = {"checkpoint_journal_bytes": 1 << 20, **NEVER}


def train(run: steelyard.Run, steps: int) -> list[list[int]]:
    with run.join(prefetch=1, timeout=LONG) as session:
        served = []
        for _ in range(steps):
            batch = session.next()
            session.report(batch, np.asarray(1.0 + batch.ids % 7 + batch.step / 8, np.float32))
            served.append(batch.ids.tolist())
        session.flush(LONG)
    return served


class Held:
    """The first checkpoint that begins comes to a halt when its `parts` first parts are written, until `go_on`. Nothing
    is held before `hold`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
        self.reached, self.row, self._free = threading.Event(), threading.Event(), threading.Event()
        self._left = parts
        self._holds = False
        commit = Store.commit

        def held(store: Store, ops: Any, *, frees: bool = False) -> None:
            if self._holds and threading.current_thread().name == "the checkpoint of run 'r'":
                if self._left <= 0:
                    self.reached.set()
                    assert self._free.wait(LONG)
                self._left -= 1
            commit(store, ops, frees=frees)
            if any(isinstance(op, Put) and op.table is Table.CHECKPOINTS for op in ops):
                self.row.set()

        monkeypatch.setattr(Store, "commit", held)

    def hold(self) -> None:
        self._holds = True

    def go_on(self) -> None:
        self._free.set()


@pytest.fixture(params=[0, 2])
def held(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Held]:
    monkeypatch.setattr(journaled, "_PART_BYTES", 100_000)
    monkeypatch.setattr(frozen_column, "_CHUNKS_AT_ONCE", 1)
    one = Held(monkeypatch, request.param)
    yield one
    one.go_on()


def begin(client: steelyard.Client, held: Held) -> tuple[steelyard.Run, list[list[int]]]:
    client.create_dataset("d", SIZE)
    run = client.create_run("r", **FIELDS)
    run.observe(np.arange(SIZE), np.arange(SIZE, dtype=np.float32) % 5)
    held.hold()
    served = train(run, 4)
    assert held.reached.wait(LONG), "no checkpoint began"
    return run, served


def rows_of(store: Store) -> int:
    row = Registry(store).run("r")
    assert row is not None
    return row.run_id


def test_batches_are_served_and_reports_taken_while_a_checkpoint_is_written(
    tmp_path: Path, held: Held
) -> None:
    with server(tmp_path, **OFTEN) as client:
        run, _ = begin(client, held)
        train(run, 30)
        assert run.history([5])[0]
        assert not held.row.is_set()
        held.go_on()
        assert held.row.wait(LONG)


def test_a_checkpoint_is_the_state_at_its_journal_position_and_nothing_later(
    tmp_path: Path, held: Held
) -> None:
    with server(tmp_path, **BY_SIZE) as client:
        # None at step 0, behind which the journal would be pruned.
        client.create_dataset("d", SIZE)
        run = client.create_run("r", **FIELDS)
        train(run, 4)
        held.hold()
        run.observe(np.arange(SIZE), np.arange(SIZE, dtype=np.float32) % 5)
        assert held.reached.wait(LONG), "no checkpoint began"
        train(run, 20)
        run.observe(np.arange(SIZE), np.arange(SIZE, dtype=np.float32) % 3)
        train(run, 5)
        held.go_on()
        assert held.row.wait(LONG)
    store = Store.open(tmp_path)
    try:
        log = RunLog(store, rows_of(store), FIELDS["history_size"])
        positions = [seq for seq, _ in log._checkpoints.list()]
        assert positions
        created = next(iter(log.journal.read(0, 1)))[1]
        replayed = RunLog(store, 10**6, FIELDS["history_size"]).create(created)[0]  # type: ignore[arg-type]
        place = 1
        for position in positions:
            for _, event in log.journal.read(place, position):
                replayed.apply(event)
            place = position
            found = log._checkpoints.newest(position)
            assert found is not None
            meta, blobs, columns = log._checkpoints.load(found)
            wanted = snapshot.take(replayed)
            assert meta["next_step"] == replayed.next_step
            assert {name: array.tobytes() for name, array in columns.items()} == {
                name: array.tobytes() for name, array in wanted.columns.items()
            }
            assert blobs.keys() == wanted.blobs.keys()
            for name, blob in wanted.blobs.items():
                assert np.array_equal(blobs[name], blob, equal_nan=blob.dtype.kind == "f"), name
    finally:
        store.close()


def seen(run: steelyard.Run) -> tuple[Any, ...]:
    info = run.info()
    ids = [*range(0, info.dataset_size, 9973), *range(40)]
    return (
        info.next_step,
        info.dataset_size,
        run.column(info.draw["score"]).tobytes(),
        run.history(ids),
        run.batch(info.next_step - 1).ids.tolist(),
    )


def rewind(client: steelyard.Client) -> None:
    client.run("r").rewind(2)


def fork(client: steelyard.Client) -> None:
    train(client.run("r").fork("f", step=3), 2)


def change_policy(client: steelyard.Client) -> None:
    client.run("r").change_policy(draw={**SCORED, "score": "last_loss"})
    train(client.run("r"), 3)
    client.run("r").change_policy(draw=SCORED)


def grow(client: steelyard.Client) -> None:
    client.append_examples("d", 70_000)


def retire(client: steelyard.Client) -> None:
    client.retire("d", np.arange(0, SIZE, 3))


DURING: dict[str, Callable[[steelyard.Client], None]] = {
    "rewind": rewind,
    "fork": fork,
    "policy": change_policy,
    "growth": grow,
    "retirement": retire,
}


@pytest.mark.parametrize("what", DURING)
def test_what_happens_to_a_run_while_it_is_saved_is_as_if_it_were_not(
    tmp_path: Path, held: Held, what: str
) -> None:
    with server(tmp_path / "calm", **NEVER) as client:
        client.create_dataset("d", SIZE)
        calm = client.create_run("r", **FIELDS)
        calm.observe(np.arange(SIZE), np.arange(SIZE, dtype=np.float32) % 5)
        train(calm, 4)
        DURING[what](client)
        wanted_ids = train(calm, 10)
        wanted = [seen(client.run(row.name)) for row in client.list_runs() if row.next_step]
    with server(tmp_path / "saved", **OFTEN) as client:
        run, _ = begin(client, held)
        # What must wait for the end of the save has it come soon.
        threading.Timer(0.5, held.go_on).start()
        DURING[what](client)
        served = train(run, 10)
        assert held.row.wait(LONG) or what == "rewind"
    for _ in range(2):
        with server(tmp_path / "saved", **OFTEN) as client:
            assert served == wanted_ids
            assert [seen(client.run(row.name)) for row in client.list_runs() if row.next_step] == wanted


def test_a_run_that_is_deleted_while_it_is_saved_leaves_nothing(tmp_path: Path, held: Held) -> None:
    with server(tmp_path, **OFTEN) as client:
        begin(client, held)
        threading.Timer(0.5, held.go_on).start()
        client.delete_run("r")
    store = Store.open(tmp_path)
    try:
        left = [table for table in Table if store.keys(table, b"\0", b"\xff" * 256, limit=1)]
        assert left == [Table.META, Table.DATASETS]
    finally:
        store.close()


def test_a_run_that_is_lost_while_its_save_hangs_comes_back_once_that_ends(
    tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journaled, "_STOP_SECONDS", 0.1)
    with server(tmp_path, **OFTEN) as client:
        run, _ = begin(client, held)
        before = run.history(np.arange(40))
        with monkeypatch.context() as patch:
            patch.setattr(Journaled, "_apply", planted)
            with pytest.raises(steelyard.SteelyardError, match="planted"):
                run.observe([1], [1.0])
        with pytest.raises(steelyard.Unavailable, match="not loaded yet"):
            run.history([1])
        held.go_on()
        assert held.row.wait(LONG)
        deadline = time.monotonic() + LONG
        while True:
            try:
                assert run.history(np.arange(40)) == before
                break
            except steelyard.Unavailable:
                assert time.monotonic() < deadline, "the run did not come back"


def planted(*_: object) -> None:
    raise StoreFailed("planted")


@pytest.mark.parametrize("many", [8, 10**9])
def test_a_frozen_column_is_what_it_was_whatever_is_written_meanwhile(
    monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr(frozen_column, "_MANY", many)
    monkeypatch.setattr(frozen_column, "_GROUP", 64)
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = int(rng.integers(1, 300))
        values = rng.random(size).astype(np.float32)
        before = values.copy()
        frozen = FrozenColumn(values)
        cuts = [0, *sorted(rng.integers(0, size + 1, 3).tolist()), size]
        for start, stop in itertools.pairwise(cuts):
            for _ in range(int(rng.integers(0, 6))):
                low = int(rng.integers(0, size))
                ids = [
                    rng.integers(0, size, int(rng.integers(0, 40))),
                    np.arange(low, int(rng.integers(low, size))),
                    np.arange(low, size, 2),
                ][int(rng.integers(0, 3))]
                frozen.keep(ids)
                values[ids] = rng.random(len(ids))
            assert frozen.read(start, stop).tobytes() == before[start:stop].tobytes()


def test_a_frozen_column_is_what_it_was_while_another_thread_writes_without_a_pause() -> None:
    rng, over = np.random.default_rng(1), threading.Event()
    values = rng.random(40 * frozen_column.CHUNK).astype(np.float32)
    before = values.copy()
    frozen = FrozenColumn(values)

    def write() -> None:
        while not over.is_set():
            for ids in (rng.integers(0, len(values), 1024), np.arange(0, len(values), 3)[: 1 << 20]):
                frozen.keep(ids)
                values[ids] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for index, chunk in frozen.chunks(range(40)):
            place = slice(index * frozen_column.CHUNK, (index + 1) * frozen_column.CHUNK)
            assert chunk.tobytes() == before[place].tobytes(), index
    finally:
        over.set()
        writer.join(LONG)
    assert (values != before).any()


def test_a_column_grows_in_place_unless_a_save_reads_it(make_run: Callable[..., RunState]) -> None:
    state = make_run(40, draw=SCORED)
    [name, *_] = state.examples.columns
    column = state.examples.columns[name]
    state.apply(DatasetGrown(50))
    # Whoever refers to it: that is not how it is known whether somebody reads it.
    assert state.examples.columns[name] is column
    frozen = freeze(state, 1, b"")
    frozen.begin(state)
    before = column.tobytes()
    state.apply(DatasetGrown(60))
    grown = state.examples.columns[name]
    assert grown is not column
    assert column.tobytes() == before
    state.apply(DatasetGrown(70))
    assert state.examples.columns[name] is grown
    assert frozen.columns[name].read(0, 50).tobytes() == before
    frozen.end(state, saved=False)
    state.check()
