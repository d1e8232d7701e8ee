import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import steelyard
from steelyard.testing import ServerProcess

STEPS, CHECKPOINT_EVERY = 60, 20


@contextmanager
def training(example: Path, address: str, run: str, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A training of one process, small enough that its start is what takes time. Killed where it is left running."""
    options = {
        "address": address,
        "run": run,
        "out": out,
        "weigh": '{"method": "linupper", "r": 0.4}',
        "steps": STEPS,
        "batch-size": 8,
        "train-every": 512,
        "held-out-every": 2048,
        "evaluate-every": 10,
        "checkpoint-every": CHECKPOINT_EVERY,
        "workers": 0,
    }
    command = [sys.executable, str(example / "train.py")]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


def held_out(out: Path) -> dict[int, float]:
    """Held-out loss by step, as it was measured last."""
    lines = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["held_out"] for line in lines if "held_out" in line}


def served(run: steelyard.Run) -> list[list[int]]:
    return [run.batch(step).ids.tolist() for step in range(STEPS)]


def test_a_trainer_that_is_killed_goes_on_from_its_checkpoint_as_if_it_had_not_been(
    example: Path, tmp_path: Path
) -> None:
    with ServerProcess(tmp_path / "server") as server, server.client() as client:
        with training(example, server.address, "whole", tmp_path / "whole") as process:
            assert process.wait(60) == 0

        checkpoint = tmp_path / "killed" / "checkpoint.pt"
        with training(example, server.address, "killed", tmp_path / "killed") as process:
            deadline = time.monotonic() + 60
            while not checkpoint.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline, "no checkpoint within a minute"
                time.sleep(0.005)
        assert process.returncode == -signal.SIGKILL
        assert CHECKPOINT_EVERY <= torch.load(checkpoint)["sampler"]["step"] < STEPS

        with training(example, server.address, "killed", tmp_path / "killed") as process:
            assert process.wait(60) == 0
        assert served(client.run("killed")) == served(client.run("whole"))
    assert held_out(tmp_path / "killed") == pytest.approx(held_out(tmp_path / "whole"), abs=1e-5)
