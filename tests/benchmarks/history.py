"""The store: what durability costs beside the fsync under it, and how long a killed run takes to come back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from steelyard.testing import ServerProcess
from steelyard_server.core.events import BatchDrawn
from steelyard_server.history.checkpoints import Checkpoints
from steelyard_server.history.chunks import CHUNK
from steelyard_server.history.codec import encode
from steelyard_server.history.journal import NO_CHAIN, Journal
from steelyard_server.history.registry import Registry
from steelyard_server.history.ring import History
from steelyard_server.history.store import Store
from steelyard_server.runs.log import RunLog
from tests.benchmarks.measure import Options, Series, Table, in_turns

BATCH = 1024


def measure(options: Options) -> Iterator[Table]:
    store = Store.open(options.scratch / "store")
    try:
        yield _journal(options, store)
        yield _history(options, store)
        yield _checkpoint(options, store)
    finally:
        store.close()
    yield _recovery(options)


def _journal(options: Options, store: Store) -> Table:
    rng = np.random.default_rng(0)
    journal = Journal(store, run_id=1)
    record = _drawn(0, rng)
    size = len(encode(record))
    records = 10 if options.quick else 100
    step = iter(range(2**62))

    def append(together: int) -> float:
        start = time.perf_counter()
        for _ in range(0, records, together):
            events = [_drawn(next(step), rng) for _ in range(together)]
            ops, _ = journal.append(events)
            store.commit(ops)
        return 1e3 * (time.perf_counter() - start) / records

    def prepare() -> float:
        """What append does before it waits for the disk, on a journal that is never written."""
        scratch = Journal(store, run_id=2)
        start = time.perf_counter()
        for at in range(records):
            scratch.append([_drawn(at, rng)])
        return 1e3 * (time.perf_counter() - start) / records

    with (options.scratch / "bare").open("wb", buffering=0) as bare:

        def write_and_sync() -> float:
            content = rng.bytes(size)
            start = time.perf_counter()
            for _ in range(records):
                bare.write(content)
                os.fsync(bare.fileno())
            return 1e3 * (time.perf_counter() - start) / records

        cases: dict[str, Callable[[], float]] = {
            "write + fsync, a file": write_and_sync,
            "append + commit": lambda: append(1),
            "append + commit, 10 together": lambda: append(10),
            "append, without the commit": prepare,
        }
        found = in_turns(options.repeats, cases)
    reference = next(iter(cases))
    series = [
        Series(name, "ms", values, None if name == reference else reference) for name, values in found.items()
    ]
    return Table("history: a journal record", series, {"bytes": size, "records a turn": records})


def _drawn(step: int, rng: np.random.Generator) -> BatchDrawn:
    ids = rng.integers(0, 1_000_000, BATCH)
    return BatchDrawn(step, ids, rng.random(BATCH), 1e-6, step, 1)


def _history(options: Options, store: Store) -> Table:
    size = 10_000 if options.quick else 1_000_000
    rng = np.random.default_rng(0)
    history = History(store, run_id=1, size=8)
    for first in range(0, size, 1 << 17):
        ids = np.arange(first, min(first + (1 << 17), size))
        store.commit(history.merge(1, ids, 0, np.ones(ids.size, np.float32)))
    seq = iter(range(2, 2**62))

    def merge() -> tuple[float, float]:
        ids = rng.choice(size, BATCH, replace=False)
        start = time.perf_counter()
        ops = history.merge(next(seq), ids, 1, np.ones(BATCH, np.float32))
        made = time.perf_counter()
        store.commit(ops)
        return 1e3 * (made - start), 1e3 * (time.perf_counter() - made)

    made, committed = zip(*(merge() for _ in range(max(options.repeats, 2))), strict=True)
    series = [Series("merge", "ms", made), Series("its commit", "ms", committed)]
    return Table("history: merge of random ids", series, {"ids": size, "merged": BATCH, "kept an id": 8})


def _checkpoint(options: Options, store: Store) -> Table:
    size = 10_000 if options.quick else 1_000_000
    column = np.random.default_rng(0).random(size, np.float32)
    checkpoints = Checkpoints(store, run_id=1)
    seq = iter(range(1, 2**62))
    one_chunk = np.zeros(-(-size // CHUNK), np.bool_)
    one_chunk[0] = True

    def save(flags: np.ndarray | None) -> float:
        start = time.perf_counter()
        column[0] += 1
        at, columns = next(seq), {"last_loss": column}
        [owed] = checkpoints.owed(columns, {"last_loss": flags}).values()
        ops = [checkpoints.chunk(at, "last_loss", i, column[i * CHUNK : (i + 1) * CHUNK]) for i in owed]
        store.commit([*ops, checkpoints.row(at, 1, NO_CHAIN, {}, {}, columns)])
        took = time.perf_counter() - start
        gone, left = checkpoints.prune_rows([])
        store.commit([*gone, *checkpoints.prune_chunks(left)])
        return 1e3 * took

    def load() -> float:
        start = time.perf_counter()
        newest = checkpoints.newest()
        assert newest is not None
        checkpoints.load(newest)
        return 1e3 * (time.perf_counter() - start)

    save(None)
    cases: dict[str, Callable[[], float]] = {
        "save + commit, all chunks": lambda: save(None),
        "save + commit, one chunk": lambda: save(one_chunk),
        "load": load,
    }
    found = in_turns(options.repeats, cases)
    series = [Series(name, "ms", values) for name, values in found.items()]
    return Table("history: a checkpoint of float32", series, {"values": size, "values a chunk": CHUNK})


def _recovery(options: Options) -> Table:
    size, steps = (10_000, 50) if options.quick else (1_000_000, 1000)
    directory = options.scratch / "recovered"
    _train_and_kill(directory, size, steps)
    store = Store.open(directory / "data")
    try:
        row = Registry(store).run("r")
        assert row is not None

        def seconds(action: Callable[[RunLog], object]) -> float:
            log = RunLog(store, row.run_id, 8)
            start = time.perf_counter()
            action(log)
            return (time.perf_counter() - start) * 1000 / steps

        cases: dict[str, Callable[[], float]] = {
            "read and check the journal": lambda: seconds(lambda log: sum(1 for _ in log.journal.read(0))),
            "load the run": lambda: seconds(lambda log: log.load()),
        }
        found = in_turns(options.repeats, cases)
    finally:
        store.close()
    series = [Series(name, "s", values) for name, values in found.items()]
    return Table(
        "history: recovery without a checkpoint, per 1000 steps", series, {"ids": size, "batch": BATCH}
    )


def _train_and_kill(directory: Path, size: int, steps: int) -> None:
    with ServerProcess(directory) as server:
        client = server.client()
        client.create_dataset("d", size)
        run = client.create_run("r", dataset="d", batch_size=BATCH, draw={"method": "scored"})
        losses = np.random.default_rng(0).random(BATCH, np.float32)
        with run.join(attempt="benchmark", timeout=60) as session:
            for _ in range(steps):
                session.report(session.next(), losses)
        server.kill()
