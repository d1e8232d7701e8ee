"""The server's process ends: killed, asked to end, or out of memory."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import steelyard
from tests.robustness.faults.registry import Bench, Broken, CannotBeTried, Round, fault
from tests.robustness.faults.scene import Scene


@fault(
    "server killed",
    how="kill -9 at a random moment, 1e5 examples; started again at once",
    bar="0 acknowledged lost, 0 counted twice, state as without the fault, same batches",
    rounds=500,
)
def kill(bench: Bench) -> Iterator[Round]:
    yield from _killed(bench if bench.short else replace(bench, examples=100_000))


@fault(
    "server killed, 1e6 examples",
    how="kill -9 at a random moment, 1e6 examples; started again at once",
    bar="as above; serving again within 5 s",
    rounds=20,
    suite=False,
)
def kill_large(bench: Bench) -> Iterator[Round]:
    yield from _killed(bench)


def _killed(bench: Bench) -> Iterator[Round]:
    """The seconds are those from the kill: to an open port, to the answer of a client that comes then (the run is
    loaded by that), and to the next batch of the trainer, which waits between two tries to connect."""
    with Scene(bench) as scene:
        while True:
            rate = scene.load()
            time.sleep(bench.moments.uniform(0, 0.3))
            scene.server.kill()
            began = time.monotonic()
            listens = scene.server.start()
            with steelyard.connect(scene.server.address, timeout=120) as client:
                client.run("r").info()
                answered = time.monotonic() - began
            served = scene.await_batch(began).at - began
            scene.settle()
            yield Round(rate, {"listens, s": listens, "run answers, s": answered, "trains again, s": served})


@fault(
    "server asked to end",
    how="SIGTERM at a random moment; started again when it has ended",
    bar="status 0, no error for a client that retries, nothing lost, same batches",
    rounds=100,
)
def terminate(bench: Bench) -> Iterator[Round]:
    with Scene(bench) as scene:
        while True:
            rate = scene.load()
            time.sleep(bench.moments.uniform(0, 0.3))
            drained = scene.server.terminate()
            began = time.monotonic()
            scene.server.start()
            served = scene.await_batch(began).at - began
            scene.settle()
            yield Round(rate, {"drained in, s": drained, "trains again, s": served})


@fault(
    "out of memory",
    how="the server is put into a cgroup (v1) with less memory than it needs, under load; the kernel kills it",
    bar="as killed: nothing acknowledged lost, nothing twice, same batches",
    rounds=10,
    suite=False,
)
def out_of_memory(bench: Bench) -> Iterator[Round]:
    group = Path(f"/sys/fs/cgroup/memory/steelyard-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        raise CannotBeTried(f"no cgroup of memory can be made: {error}") from error
    try:
        with Scene(bench) as scene:
            while True:
                rate = scene.load()
                limit = group / "memory.limit_in_bytes"
                limit.write_text("-1")
                (group / "cgroup.procs").write_text(str(scene.server.pid))
                # What it holds already is not counted here: what it asks for from now on is.
                limit.write_text(str(bench.moments.randrange(1, 16) << 20))
                status = scene.server.wait(150)
                if status != -signal.SIGKILL:
                    raise Broken(
                        f"out of memory, the server ended with status {status}\n{scene.server.words()}"
                    )
                began = time.monotonic()
                scene.server.start()
                served = scene.await_batch(began).at - began
                scene.settle()
                yield Round(rate, {"trains again, s": served})
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()
