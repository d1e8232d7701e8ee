"""What every contract is held against: a real server, the stream of a run that nothing disturbed, and a bad network."""

from __future__ import annotations

import contextlib
import functools
import itertools
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import steelyard
from steelyard.testing import server

WAIT = 30.0
"""Seconds after which what should have happened is a failure."""

SIZE = 200


def losses(batch: steelyard.Batch) -> npt.NDArray[np.float32]:
    """float32[n]: what the trainers of these tests lose: a function of example and step alone."""
    return ((batch.ids * 37 + batch.step * 11) % 101 / 40 + 0.1).astype(np.float32)


def same(one: steelyard.Batch, whole: steelyard.Batch) -> None:
    """AssertionError where `one` is not that slice of `whole`, to the last bit."""
    cut = slice(one.offset, one.offset + len(one))
    assert (one.step, one.batch_size, one.digest) == (whole.step, whole.batch_size, whole.digest)
    np.testing.assert_array_equal(one.ids, whole.ids[cut])
    np.testing.assert_array_equal(one.probability, whole.probability[cut])
    np.testing.assert_array_equal(one.weight, whole.weight[cut])


class Lab:
    """Runs on one dataset of `SIZE` examples, all with the same seed: so they differ in nothing but what is done."""

    def __init__(self, client: steelyard.Client) -> None:
        self.client = client
        self.losses = losses
        self.same = same
        self._names = itertools.count()
        self._undisturbed: dict[str, tuple[list[steelyard.Batch], steelyard.Run]] = {}
        client.create_dataset("d", SIZE)

    def run(self, **options: Any) -> steelyard.Run:
        name = f"r{next(self._names)}"
        return self.client.create_run(name, **{"dataset": "d", "batch_size": 10, "seed": 5, **options})

    def undisturbed(self, steps: int, **options: Any) -> list[steelyard.Batch]:
        """The batches of a run with one trainer that reports each before it takes the next. Made once."""
        key = repr(sorted(options.items()))
        batches, run = self._undisturbed.get(key) or ([], self.run(**options))
        self._undisturbed[key] = batches, run
        if len(batches) < steps:
            with run.join() as session:
                while len(batches) < steps:
                    batches.append(session.next(WAIT))
                    session.report(batches[-1], losses(batches[-1]))
        return batches[:steps]

    def ranks(
        self, run: steelyard.Run, world_size: int, *, order: Sequence[int] | None = None, **options: Any
    ) -> list[steelyard.Session]:
        """One session for each rank, joined in `order`; in order of rank."""
        options = {"attempt": f"of {world_size}", "timeout": WAIT, **options}
        found = {rank: run.join(rank, world_size, **options) for rank in (order or range(world_size))}
        return [found[rank] for rank in range(world_size)]

    def train(
        self,
        sessions: Sequence[steelyard.Session],
        whole: Sequence[steelyard.Batch],
        steps: Iterable[int],
    ) -> None:
        """Takes and reports `steps` in lockstep; each slice must be that of the undisturbed batch."""
        for step in steps:
            batches = [session.next(WAIT) for session in sessions]
            assert sum(map(len, batches)) == whole[step].batch_size
            for session, batch in zip(sessions, batches, strict=True):
                assert batch.step == step
                same(batch, whole[step])
                session.report_async(batch, losses(batch))

    def leave(self, sessions: Iterable[steelyard.Session]) -> None:
        for session in sessions:
            session.leave(WAIT)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with server(tmp_path_factory.mktemp("server")) as client:
        yield Lab(client)


@pytest.fixture(scope="session")
def lab_of() -> type[Lab]:
    """A lab on any client's server."""
    return Lab


class Network:
    """A way to a server that can be cut, and that can swallow what is sent while its connections stand."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._passes = threading.Event()
        self._passes.set()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._start(self._accept)

    def swallow(self) -> None:
        """From now on nothing arrives anywhere, and nobody is told: as when a machine loses its power."""
        self._passes.clear()

    def heal(self) -> None:
        self._passes.set()

    def cut(self) -> None:
        """Breaks every connection; new ones can be made."""
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        """Ends everything, threads included."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts, which close() does not
        self._passes.set()
        self.cut()
        for thread in self._threads:
            thread.join(WAIT)
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._sockets.append(near)
                self._passes.wait()
                far = socket.create_connection(self._target, WAIT)
                far.settimeout(None)
                self._sockets.append(far)
                self._start(functools.partial(self._pump, near, far))
                self._start(functools.partial(self._pump, far, near))

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._passes.wait()
                sink.sendall(data)
        self._passes.wait()
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _start(self, target: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=target, name="network", daemon=True))
        self._threads[-1].start()


@pytest.fixture
def network() -> Iterator[Callable[[str], Network]]:
    """A network before any address."""
    made: list[Network] = []

    def make(address: str) -> Network:
        made.append(Network(address))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def programs() -> Path:
    return Path(__file__).parent / "programs"
