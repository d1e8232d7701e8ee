"""Many runs on one server: each is served as if it were alone, whatever is done to the others."""

import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

import steelyard
from steelyard.testing import ServerProcess, server
from steelyard_server.history.journal import Journal
from steelyard_server.history.ops import Put, Table, u64
from steelyard_server.history.registry import Registry
from steelyard_server.history.store import Store

pytestmark = pytest.mark.xdist_group("many runs")

SIZES = {"d0": 400, "d1": 1000, "d2": 3000}
STEPS = 25
SETTLED = 120


@dataclass(frozen=True)
class Kind:
    """A run that is trained: number decides everything about it."""

    number: int

    @property
    def name(self):
        return f"run-{self.number}"

    @property
    def spec(self):
        scored = {"method": "scored", "score": "last_loss", "transform": "power", "alpha": 1.0, "floor": 0.1}
        return {
            "dataset": f"d{self.number % 3}",
            "batch_size": (8, 32, 100)[self.number % 3],
            "seed": self.number,
            "draw": {"method": "shuffle"} if self.number % 5 == 0 else scored,
            "staleness": self.number % 4,
        }

    def loss(self, ids, step):
        return np.asarray(1.0 + (ids * (self.number + 3)) % 11 + step / 8, np.float32)


RUNS = [Kind(number) for number in range(30)]


def fill(client):
    for name, size in SIZES.items():
        client.create_dataset(name, size)


def train(client, kind, steps, name=None):
    with client.run(name or kind.name).join(prefetch=2, timeout=SETTLED) as session:
        served = []
        for _ in range(steps):
            batch = session.next()
            session.report_async(batch, kind.loss(batch.ids, batch.step))
            served.append((batch.ids.tolist(), batch.probability.tolist()))
        session.flush(SETTLED)
    return served


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What each run is served on a server that nobody else uses at the time."""
    with server(tmp_path_factory.mktemp("quiet")) as client:
        fill(client)
        served = {}
        for kind in RUNS:
            client.create_run(kind.name, **kind.spec)
            served[kind.name] = train(client, kind, STEPS)
            client.delete_run(kind.name)
        return served


class Many:
    """Threads whose first failure is kept."""

    def __init__(self):
        self.failures = []
        self._threads = []

    def start(self, work, *arguments):
        def guarded():
            try:
                work(*arguments)
            except BaseException as error:
                self.failures.append((arguments, error))

        self._threads.append(threading.Thread(target=guarded, daemon=True))
        self._threads[-1].start()
        return self._threads[-1]

    def join(self):
        deadline = time.monotonic() + SETTLED
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), f"a thread goes on after {SETTLED} s; failures: {self.failures}"
        assert not self.failures


def test_thirty_runs_are_served_as_if_each_were_alone_while_others_come_and_go(tmp_path, alone):
    served, over = {}, threading.Event()
    with server(tmp_path, checkpoint_interval_seconds=0.5) as client:
        fill(client)
        for kind in RUNS:
            client.create_run(kind.name, **kind.spec)
        steady, restless = RUNS[:22], RUNS[22:]

        def go(kind):
            served[kind.name] = train(client, kind, STEPS)

        def come_and_go(kind):
            """Made, trained, deleted and made again under the same name, until the others are done."""
            while True:
                last = over.is_set()
                served[kind.name] = train(client, kind, STEPS)
                if last:
                    return
                client.delete_run(kind.name)
                made = client.create_run(kind.name, **kind.spec)
                assert (made.info().next_step, made.stats().reported_losses) == (0, 0)

        def there_and_back(kind):
            """Rewound, and forked from a step before; the fork goes on as its parent did."""
            run = client.run(kind.name)
            train(client, kind, STEPS // 2)
            while True:
                last = over.is_set()
                run.fork(f"{kind.name}-fork", step=5)
                first = train(client, kind, 5, f"{kind.name}-fork")
                assert first == alone[kind.name][5:10]
                client.delete_run(f"{kind.name}-fork")
                run.rewind(3)
                rest = train(client, kind, STEPS - 3)
                assert rest == alone[kind.name][3:]
                if last:
                    return

        others, many = Many(), Many()
        for kind in restless[:4]:
            others.start(come_and_go, kind)
        for kind in restless[4:]:
            others.start(there_and_back, kind)
        for kind in steady:
            many.start(go, kind)
        many.join()
        over.set()
        others.join()
        assert sorted(one.name for one in client.list_runs()) == sorted(kind.name for kind in RUNS)
        for kind in [*steady, *restless[:4]]:
            assert served[kind.name] == alone[kind.name], kind
        steps = {one.name: one.closed_steps for one in client.list_runs()}
        assert steps == {kind.name: STEPS for kind in RUNS}


def report_and_flush(session, batch, losses):
    session.report_async(batch, losses)
    session.flush(30)


def rows_of_runs(directory):
    """Run ids under which the stopped server's store has rows, of each table; and those of the runs it lists."""
    store = Store.open(directory)
    try:
        tables = (Table.JOURNAL, Table.STEPS, Table.CHECKPOINTS, Table.HISTORY)
        keys = {table: store.keys(table, b"\0", b"\xff" * 8) for table in tables}
        found = {table: {int.from_bytes(key[:8], "big") for key in keys[table]} for table in tables}
        return found, {run.run_id for run in Registry(store).runs()}
    finally:
        store.close()


def test_a_run_made_again_under_its_name_starts_anew_and_nothing_of_the_old_one_is_left(tmp_path, alone):
    kind = RUNS[1]
    with server(tmp_path) as client:
        fill(client)
        for _ in range(3):
            run = client.create_run(kind.name, **kind.spec)
            assert run.history(range(100)) == [[]] * 100
            assert run.stats().journal_records == 1
            with pytest.raises(steelyard.NotFound):
                run.batch(0)
            assert train(client, kind, STEPS) == alone[kind.name]
            run.bookmark("there")
            client.delete_run(kind.name)
        client.create_run(kind.name, **kind.spec)
        assert client.run(kind.name).info().bookmarks == {}
    found, listed = rows_of_runs(tmp_path)
    assert len(listed) == 1
    assert all(ids <= listed for ids in found.values()), found


def test_a_trainer_of_a_deleted_run_is_told_and_does_not_train_the_new_one(tmp_path):
    kind = RUNS[1]
    with server(tmp_path) as client:
        fill(client)
        run = client.create_run(kind.name, **kind.spec)
        session = run.join(timeout=30)
        batch = session.next()
        client.delete_run(kind.name)
        client.create_run(kind.name, **kind.spec)
        with pytest.raises(steelyard.NotFound, match="was deleted"):
            report_and_flush(session, batch, kind.loss(batch.ids, 0))
        session.close()
        assert run.info().attempt == ""
        assert run.stats().reported_losses == 0


def damage(directory, name, step):
    """Flips a bit of the batch of `step`; the record's number."""
    store = Store.open(directory)
    run = Registry(store).run(name)
    assert run is not None
    seq = Journal(store, run.run_id).seq_of_step(step)
    assert seq is not None
    key = u64(run.run_id, seq)
    value = bytearray(store.get(Table.JOURNAL, key) or b"")
    value[len(value) // 2] ^= 1
    store.commit([Put(Table.JOURNAL, key, bytes(value))])
    store.close()
    return seq


def test_a_run_with_a_flipped_byte_is_the_only_one_that_notices(tmp_path, alone):
    """Ten runs; in one, a byte of a record that its recovery reads is flipped while nobody looks."""
    kinds = RUNS[:10]
    bad = kinds[4]
    with ServerProcess(tmp_path) as process:
        client = process.client(timeout=60)
        fill(client)
        for kind in kinds:
            client.create_run(kind.name, **kind.spec)
            train(client, kind, 6)
        process.kill()
        seq = damage(tmp_path / "data", bad.name, step=3)
        process.start()
        rest, many = {}, Many()

        def go(kind):
            rest[kind.name] = train(client, kind, STEPS - 6)

        for kind in kinds:
            if kind is not bad:
                many.start(go, kind)
        for _ in range(5):
            with pytest.raises(steelyard.DataLoss, match=f"run {bad.name!r}, journal record {seq}"):
                client.run(bad.name).join(timeout=30)
        many.join()
        for kind in kinds:
            if kind is not bad:
                assert rest[kind.name] == alone[kind.name][6:]
        client.delete_run(bad.name)
        client.create_run(bad.name, **bad.spec)
        assert train(client, bad, STEPS) == alone[bad.name]
