"""Going back: what a bookmark, a rewind and a fork cost, and how large a trainer's state is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

import steelyard
from steelyard.testing import ServerProcess
from steelyard.torch import BatchSampler
from tests.benchmarks.measure import Options, Series, Table
from tests.benchmarks.runs import BATCH, DRAW


def measure(options: Options) -> Iterator[Table]:
    """No checkpoint is made, so that a rewind to step s replays s steps."""
    steps = 40 if options.quick else 1000
    for size in (10_000,) if options.quick else (10_000, 1_000_000, 10_000_000):
        with ServerProcess(options.scratch / f"rewind-{size}", checkpoint_interval_seconds=1e6) as server:
            client = server.client(timeout=300)
            client.create_dataset("d", size)
            yield _table(options, client, size, steps)
    yield _state_sizes(options)


def _table(options: Options, client: steelyard.Client, size: int, steps: int) -> Table:
    run = client.create_run("r", dataset="d", batch_size=BATCH, draw=DRAW)
    found: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        for name, took in _turn(client, run, steps):
            found.setdefault(name, []).append(1e3 * took)
    series = [Series(name, "ms", values) for name, values in found.items()]
    return Table("rewind: time of going back", series, {"ids": size, "batch": BATCH})


def _turn(client: steelyard.Client, run: steelyard.Run, steps: int) -> Iterator[tuple[str, float]]:
    """Trains from step 0 on, and goes back there: the farthest first, so that the journal reaches beyond each."""
    near, middle = steps // 100 or 1, steps // 10
    _train(run, steps)
    yield "bookmark, of now", _timed(lambda: run.bookmark("now"))
    yield "bookmark, of an old step", _timed(lambda: run.bookmark("old", middle))
    yield f"fork, {steps} steps replayed", _timed(lambda: run.fork("fork", step=steps))
    client.delete_run("fork")
    for to in (steps, middle, near, 0):
        yield f"rewind, {to} steps replayed", _timed(partial(run.rewind, to))


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _train(run: steelyard.Run, steps: int) -> None:
    with run.join(timeout=60) as session:
        losses = np.random.default_rng(0).random(session.batch_size, np.float32)
        for _ in range(steps):
            session.report_async(session.next(), losses)
        session.flush()


def _state_sizes(options: Options) -> Table:
    """Bytes of a sampler's state as JSON, after no step and after some."""
    found: dict[str, list[float]] = {"state_dict, at the start": [], "state_dict, after 100 steps": []}
    with ServerProcess(options.scratch / "state") as server:
        client = server.client()
        client.create_dataset("d", 10_000)
        for turn in range(options.repeats):
            run = client.create_run(f"r{turn}", dataset="d", batch_size=BATCH, draw=DRAW)
            with BatchSampler(run, rank=0, world_size=1) as sampler:
                found["state_dict, at the start"].append(len(json.dumps(sampler.state_dict())))
                batches = iter(sampler)
                for _ in range(100):
                    ids = next(batches)
                    sampler.report(torch.ones(len(ids)))
                found["state_dict, after 100 steps"].append(len(json.dumps(sampler.state_dict())))
    return Table("rewind: bytes of a trainer's state", [Series(n, "bytes", v) for n, v in found.items()])
