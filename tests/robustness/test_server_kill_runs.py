"""kill -9 of the server, of the trainers and of both, at random moments: the runs are as if nothing had been."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard.testing import ServerProcess, server

PROGRAM = Path(__file__).parent / "programs" / "train_until_told.py"
SCORED = {"method": "scored", "score": "last_loss", "transform": "power", "alpha": 1.0, "floor": 0.1}
RUNS: dict[str, dict[str, Any]] = {
    "shuffle": {"draw": {"method": "shuffle"}, "staleness": 4},
    "fresh": {"draw": SCORED, "staleness": 0},
    "stale": {"draw": SCORED, "staleness": 4},
}
SIZE = 201
KILLS = 10
"""Of each kind and durability: twenty of each kind in all."""


def create_runs(client: steelyard.Client) -> None:
    client.create_dataset("d", SIZE)
    for name, fields in RUNS.items():
        client.create_run(name, dataset="d", batch_size=8, seed=9, **fields)


def trainers(process: ServerProcess, stop: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), process.address, str(stop)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def progress(client: steelyard.Client) -> int:
    """Losses taken over all runs."""
    return sum(client.run(name).stats().reported_losses for name in RUNS)


def await_progress(client: steelyard.Client, since: int) -> int:
    deadline = time.monotonic() + 60
    while (now := progress(client)) <= since:
        assert time.monotonic() < deadline, f"no loss was taken in 60 s beyond {since}"
        time.sleep(0.02)
    return now


@pytest.fixture(params=["sync", "interval"])
def process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path / "s", durability=request.param, checkpoint_interval_seconds=0.3, log_level="warning"
    ) as started:
        yield started


@pytest.mark.timeout(300)
def test_runs_are_the_same_as_ones_that_nobody_killed(process: ServerProcess, tmp_path: Path) -> None:
    moments = random.Random(7)
    client, stop = process.client(timeout=60), tmp_path / "stop"
    create_runs(client)
    child = trainers(process, stop)
    try:
        taken = 0
        for number in range(3 * KILLS):
            kind = ("server", "trainers", "both")[number % 3]
            taken = await_progress(client, taken)
            time.sleep(moments.uniform(0, 0.3))
            if kind != "trainers":
                process.kill()
            if kind != "server":
                child.kill()
                child.wait(30)
                child = trainers(process, stop)
            if kind != "trainers":
                process.start()
        assert child.poll() is None, "the trainers must have lived through the server's deaths"
        steps = max(client.run(name).info().next_step for name in RUNS) + 20
        stop.write_text(str(steps))
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait(30)
    with server(tmp_path / "twin") as calm:
        create_runs(calm)
        subprocess.run(
            [sys.executable, str(PROGRAM), calm.address, str(stop)],
            check=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        for name in RUNS:
            compare(client.run(name), calm.run(name), steps)


def compare(run: steelyard.Run, twin: steelyard.Run, steps: int) -> None:
    drawn = min(run.info().next_step, twin.info().next_step)
    assert drawn >= steps
    assert run.info().closed_steps == twin.info().closed_steps == steps
    scored = "score" in run.info().draw
    for step in range(drawn):
        mine, theirs = run.batch(step), twin.batch(step)
        assert mine.digest == theirs.digest, (run.name, step)
        np.testing.assert_array_equal(mine.probability, theirs.probability)
        if scored:
            assert mine.state_version == theirs.state_version, (run.name, step)
    assert run.history(range(SIZE)) == twin.history(range(SIZE))
    if scored:
        for one in (run, twin):
            one.rewind(steps)
            with one.join(prefetch=1) as session:  # the draw folds what it may read
                session.next()
        np.testing.assert_array_equal(run.column("last_loss"), twin.column("last_loss"))
