"""What a server that is killed again and again has to replay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import steelyard
from steelyard.testing import ServerProcess

STEPS = 40
"""Of some 16 KB each: more than an eighth of the bound of a MiB, and less than the bound."""


def train(run: steelyard.Run, steps: int) -> None:
    with run.join(timeout=60) as session:
        for _ in range(steps):
            batch = session.next()
            session.report(batch, batch.ids % 7)


def test_a_restart_that_replayed_much_makes_a_checkpoint_and_the_next_one_replays_little(
    tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    with ServerProcess(tmp_path, checkpoint_journal_bytes=1 << 20) as process, process.client() as client:
        client.create_dataset("d", 5000)
        run = client.create_run("r", dataset="d", batch_size=1024, draw={"method": "scored", "floor": 0.1})
        train(run, STEPS)
        assert run.retention().checkpoints == 0, "the bound was passed"
        process.kill()
        process.start()
        train(run, 1)
        eventually(lambda: run.retention().checkpoints == 1)
        process.kill()
        process.start()
        train(run, 1)
        replayed = [int(line.split("replayed_bytes=")[1].split()[0]) for line in log_of(tmp_path)]
    # A start that has nothing to replay says nothing.
    first, *second = replayed
    assert first > 1 << 17
    assert sum(second) < first / 4


def log_of(directory: Path) -> list[str]:
    text = (directory / "server.log").read_text()
    return [line for line in text.splitlines() if "replayed_bytes=" in line]
