"""Clients that die, that read nothing, or that report in any order, while a training goes on."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator

import numpy as np

import steelyard
from steelyard import wire
from steelyard.v1 import trainer_pb2
from tests.robustness.crash.losses import losses_of
from tests.robustness.faults.model import Model
from tests.robustness.faults.networks import MIB, descriptors_left
from tests.robustness.faults.registry import Bench, Broken, Round, fault
from tests.robustness.faults.scene import Load, Scene
from tests.robustness.faults.told import Told
from tests.robustness.network.bare import Stream, batches_of, report_of
from tests.robustness.network.process import descriptors, private_bytes

_UNREAD, _WIDE = 256, 1 << 14
"""Batches, and ids in each."""
_OPEN_BYTES = 9
"""Of memory that a run needs for a position that was drawn and not reported."""
_MOST_GROWN = 64 * MIB


@fault(
    "trainer killed",
    how="kill -9 of the trainer's process at a random moment; another takes its rank at once",
    bar="its rank is free at once, every loss counts once, same batches, descriptors back",
    rounds=50,
    suite=False,
)
def trainer_killed(bench: Bench) -> Iterator[Round]:
    with Scene(bench) as scene:
        base = descriptors(scene.server.pid)
        while True:
            rate = scene.load()
            time.sleep(bench.moments.uniform(0, 0.3))
            scene.trainer.end()
            killed = time.monotonic()
            scene.replace(Load(scene.server.address, "r", bench.folder))
            again = scene.await_batch(killed).at - killed
            scene.settle()
            descriptors_left(scene, base)
            yield Round(rate, {"trains again, s": again})


@fault(
    "slow reader",
    how=f"another trainer is owed {_UNREAD} batches of {_WIDE} ids and reads none for seconds",
    bar="the training goes on; the server grows by 64 MiB at most, beside what drawn steps need; then all of it comes",
    rounds=10,
    suite=False,
)
def slow_reader(bench: Bench) -> Iterator[Round]:
    seconds = 1.0 if bench.short else 10.0
    with Scene(bench) as scene:
        scene.client.create_dataset("wide", 4 * _WIDE)
        while True:
            run = scene.client.create_run("unread", dataset="wide", batch_size=_WIDE, staleness=16)
            rate = scene.load()
            scene.settle()  # a training adds memory of its own until a checkpoint: it waits while that is measured
            before = private_bytes(scene.server.pid)
            with Stream(scene.server.address) as stream:
                stream.reading.clear()
                stream.join("unread", credit=_UNREAD)
                _await_drawn(run)
                grown = _most_held(scene, seconds) - before - _UNREAD * _WIDE * _OPEN_BYTES
                scene.load()
                stream.reading.set()
                steps = [one.step for one in batches_of(stream, _UNREAD)]
            if steps != list(range(_UNREAD)):
                raise Broken(f"expected the steps below {_UNREAD} in order; got {steps[:5]} ...")
            if grown > _MOST_GROWN:
                raise Broken(f"the server grew by {grown / MIB:.0f} MiB, of {_MOST_GROWN / MIB:.0f} allowed")
            scene.settle()
            scene.client.delete_run("unread")
            yield Round(rate, {"server grown, MiB": grown / MIB})


def _await_drawn(run: steelyard.Run) -> None:
    deadline = time.monotonic() + 60
    while run.info().next_step < _UNREAD:
        if time.monotonic() > deadline:
            raise Broken(f"{run.info().next_step} of {_UNREAD} steps were drawn within 60 s")
        time.sleep(0.05)


def _most_held(scene: Scene, seconds: float) -> int:
    """Bytes of the server's memory, at most."""
    over, most = time.monotonic() + seconds, 0
    while time.monotonic() < over:
        most = max(most, private_bytes(scene.server.pid))
        time.sleep(0.1)
    return most


@fault(
    "reports in any order",
    how="another trainer cuts the reports of four steps in three, and sends them shuffled, some two or three times",
    bar="that run is what it is when they come in order and once; the training goes on, same batches",
    rounds=20,
    suite=False,
)
def any_order(bench: Bench) -> Iterator[Round]:
    fields = {"batch_size": 64, "staleness": 3, "draw": {"method": "scored", "floor": 0.1}}
    steps = 60 if bench.short else 600
    with Scene(bench) as scene:
        for number in itertools.count():
            name = f"shuffled-{number}"
            run = scene.client.create_run(name, dataset="d", **fields)  # type: ignore[arg-type]
            rate, model = scene.load(), Model(name, fields, bench.size)
            told, again = _shuffled(scene.server.address, name, steps, bench.moments)
            model.check_told(told)
            model.check_state(run, steps)
            if (counted := run.stats().duplicate_reports) != again:
                raise Broken(f"{again} reports were sent again, and {counted} counted as such")
            scene.settle()
            scene.client.delete_run(name)
            yield Round(rate, {"reports again": again})


def _shuffled(address: str, name: str, steps: int, lots: random.Random) -> tuple[list[Told], int]:
    """Trains so many steps; what was served, and how many of the reports were sent before."""
    told: list[Told] = []
    held: list[trainer_pb2.Report] = []
    sent = 0
    with Stream(address) as stream:
        stream.join(name, credit=4)
        stream.expect("joined")
        for batch in batches_of(stream, steps):
            told.append(Told(0.0, batch.step, batch.digest, 0))
            losses = losses_of(name, 0, batch.step, wire.unpack_ids(batch.ids))
            for part in np.array_split(np.arange(len(losses)), sorted(lots.sample(range(1, len(losses)), 2))):
                held.append(report_of(batch, losses[part], int(part[0])))
            if batch.step % 4 == 3:
                again = [report for report in held for _ in range(lots.choice((1, 1, 2, 3)))]
                lots.shuffle(again)
                for report in again:
                    stream.send(report=report)
                sent += len(again)
                held.clear()
                stream.send(credit=trainer_pb2.Credit(batches=4))
        stream.send(leave=trainer_pb2.Leave())
        stream.end()
    return told, sent - 3 * steps
