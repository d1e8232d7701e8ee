"""One life of a large run: made, given a loss for every example, trained, saved, killed, and serving again.

What `memory` and `scale` tell are two sides of it, so that a life is lived once in a process, whoever asks first.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

import steelyard
from steelyard.testing import ServerProcess
from steelyard_server.history.checkpoints import Checkpoints
from steelyard_server.history.journal import Journal
from steelyard_server.history.registry import Registry
from steelyard_server.history.store import Store
from tests.benchmarks import own_kernels
from tests.benchmarks.measure import Options
from tests.benchmarks.wire import BATCH

DRAW = {"method": "scored", "score": "last_loss"}
_PART = 1 << 20
"""Losses of one call of observe."""
_STEPS = 64
_SMALL = 4096
_SAVE_SECONDS = 1.0
_SAVE_IDS_A_SECOND = 2e7
"""A run that changes saves itself here every second, or every 5 at 1e8 and 50 at 1e9: soon after its last loss. While
it is given them it does so whenever its journal has grown by 256 MiB."""
_QUIET_SECONDS = 2.0
"""So long nothing is written: it has saved."""
_WAIT_SECONDS = 1800.0
_T = TypeVar("_T")


@dataclass(slots=True)
class Life:
    """Bytes of anonymous memory (RssAnon), bytes on disk, and seconds."""

    size: int
    empty: int = 0
    """With a run of 4096 examples that has served: the program, its kernels and their first buffers."""
    created: int = 0
    settled: int = 0
    """Every example has a loss, the run has trained and saved itself, and nothing goes on."""
    peak_observing: int = 0
    """Until it has saved itself."""
    peak_resident: int = 0
    """VmHWM over the same time: with pages of the store that the system may drop at any time."""
    recovered: int = 0
    peak_recovering: int = 0
    disk: int = 0
    replayed: int = 0
    """Records of the journal that recovery reads behind the checkpoint."""
    seconds: dict[str, float] = field(default_factory=dict)


def lives(options: Options, size: int) -> list[Life]:
    """As many as `options.repeats`, fewer of the large ones."""
    repeats = min(options.repeats, 3 if size <= 10_000_000 else 1)
    return _lived(options.scratch.parent, size, repeats)


@lru_cache
def _lived(folder: Path, size: int, repeats: int) -> list[Life]:
    found = []
    for number in range(repeats):
        directory = folder / f"life-{size}-{number}"
        try:
            found.append(_live(directory, size))
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return found


def sizes(options: Options) -> list[int]:
    if options.quick:
        return [10_000]
    return [
        10_000,
        1_000_000,
        10_000_000,
        *([100_000_000] if options.large or options.huge else []),
        *([1_000_000_000] if options.huge else []),
    ]


def _live(directory: Path, size: int) -> Life:
    life = Life(size)
    server = ServerProcess(directory, timeout=_WAIT_SECONDS, checkpoint_interval_seconds=_save_seconds(size))
    with server:
        client = server.client(timeout=_WAIT_SECONDS)
        own_kernels.wait_for(server)
        _small_run(client)
        life.empty = anonymous(server.pid)
        with _watched(server.pid) as peak:
            _grow(life, client, server)
            life.peak_observing = peak()
        life.peak_resident = _status(server.pid, "VmHWM")
        life.settled = anonymous(server.pid)
        server.kill()
        life.disk = _disk(directory)
        life.replayed = _behind_checkpoint(directory)
        for name in ("restart to the first batch", "restart to the first batch, cold files"):
            if "cold" in name:
                _forget_files(directory)
            _restart(life, name, server)
            server.kill()
    return life


def _save_seconds(size: int) -> float:
    return max(_SAVE_SECONDS, size / _SAVE_IDS_A_SECOND)


def _small_run(client: steelyard.Client) -> None:
    client.create_dataset("small", _SMALL)
    _train(client.create_run("small", dataset="small", batch_size=BATCH, draw=DRAW), _STEPS)


def _grow(life: Life, client: steelyard.Client, server: ServerProcess) -> None:
    def made() -> steelyard.Run:
        client.create_dataset("d", life.size)
        return client.create_run("r", dataset="d", batch_size=BATCH, draw=DRAW)

    run = _timed(life, "create dataset and run", made)
    life.created = anonymous(server.pid)
    _timed(life, "observe a loss for each", lambda: _observe(run, life.size))
    _timed(life, f"{_STEPS} steps, report and draw", lambda: _train(run, _STEPS))
    _timed(life, "until it is saved", lambda: _until_quiet(server.pid, life.size))


def _observe(run: steelyard.Run, size: int) -> None:
    for first in range(0, size, _PART):
        ids = np.arange(first, min(first + _PART, size))
        run.observe(ids, np.random.default_rng([1, first]).lognormal(size=len(ids)).astype(np.float32))


def _train(run: steelyard.Run, steps: int) -> None:
    with run.join(timeout=_WAIT_SECONDS) as session:
        losses = np.random.default_rng(0).random(session.batch_size, np.float32)
        for _ in range(steps):
            session.report_async(session.next(), losses)
        session.flush()


def _restart(life: Life, name: str, server: ServerProcess) -> None:
    start = time.perf_counter()
    server.start()
    life.seconds[name.replace("the first batch", "its first answer")] = time.perf_counter() - start
    with _watched(server.pid) as peak:
        run = server.client(timeout=_WAIT_SECONDS).run("r")
        drawn = run.info().next_step
        with run.join(timeout=_WAIT_SECONDS) as session:
            losses = np.random.default_rng(0).random(session.batch_size, np.float32)
            batch = session.next()
            life.seconds[name] = time.perf_counter() - start
            while batch.step < drawn:
                session.report_async(batch, losses)
                batch = session.next()
        life.seconds[name.replace("the first batch", "the first one drawn anew")] = (
            time.perf_counter() - start
        )
        life.recovered = anonymous(server.pid)
        life.peak_recovering = max(life.peak_recovering, peak())


def _timed(life: Life, name: str, action: Callable[[], _T]) -> _T:
    start = time.perf_counter()
    result = action()
    life.seconds[name] = time.perf_counter() - start
    return result


def _until_quiet(pid: int, size: int) -> None:
    """Waits until the server has written nothing for longer than between two checkpoints; RuntimeError where it goes on
    for too long."""
    deadline, before, since = time.monotonic() + _WAIT_SECONDS, -1, time.monotonic()
    while time.monotonic() - since < _QUIET_SECONDS + _save_seconds(size):
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"expected the server to come to rest within {_WAIT_SECONDS:g} s, it writes on"
            )
        now = written(pid)
        if now != before:
            before, since = now, time.monotonic()
        time.sleep(0.1)


def _behind_checkpoint(directory: Path) -> int:
    """How many records of the journal no checkpoint has."""
    store = Store.open(directory / "data")
    try:
        row = Registry(store).run("r")
        assert row is not None
        saved = Checkpoints(store, row.run_id).newest_seq()
        return sum(1 for _ in Journal(store, row.run_id).read(saved))
    finally:
        store.close()


def _forget_files(directory: Path) -> None:
    """Drops what the system holds of them in memory; they are as durable as they were."""
    for path in (directory / "data").rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _disk(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in (directory / "data").rglob("*") if path.is_file())


# ---- the server's process ----


def anonymous(pid: int) -> int:
    """Bytes of memory that belong to the process alone, and to no file."""
    return _status(pid, "RssAnon")


def written(pid: int) -> int:
    """Bytes that the process has caused to be written to storage."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/io says nothing of write_bytes")


@contextmanager
def _watched(pid: int) -> Iterator[Callable[[], int]]:
    """The greatest `anonymous` so far, looked at every few milliseconds: the call answers it."""
    over, greatest = threading.Event(), [anonymous(pid)]

    def watch() -> None:
        while not over.wait(0.005):
            greatest[0] = max(greatest[0], anonymous(pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: greatest[0]
    finally:
        over.set()
        thread.join(10)


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status says nothing of {name}")
