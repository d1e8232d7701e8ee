"""The example job's own arguments, with two agents of torchrun on this machine in place of its pods."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelyard.testing import ServerProcess

ROOT = Path(__file__).parents[2]
SECONDS = 110
# Little text, so that a step takes no time.
SMALL = [
    "--batch-size=12",
    "--train-every=4000",
    "--held-out-every=40000",
    "--workers=0",
    "--checkpoint-every=3",
]


@pytest.mark.skipif(
    os.environ.get("DEPLOY_TESTS") != "all",
    reason="half a minute of imports of torch: DEPLOY_TESTS=all",
)
def test_a_job_of_two_pods_goes_on_as_one_of_another_size_with_the_batches_that_would_have_come(
    yaml: Any, tmp_path: Path
) -> None:
    [container] = yaml("examples/trainer-job.yaml")[-1]["spec"]["template"]["spec"]["containers"]
    with ServerProcess(tmp_path / "server") as server, server.client() as client:
        launch(container["args"], server.address, tmp_path, pods=2, processes=1, steps=6)
        launch(container["args"], server.address, tmp_path, pods=1, processes=3, steps=9)
        run = client.run("example")
        other = client.create_run("calm", dataset=run.info().dataset, batch_size=12, seed=0)
        with other.join() as session:
            for step in range(9):
                batch = session.next()
                assert np.array_equal(run.batch(step).ids, batch.ids)
                session.report(batch, np.zeros(12, np.float32))
        events = [type(event).__name__ for event in run.events()]
        assert events.count("LossesReported") == 6 * 2 + 3 * 3


def launch(
    arguments: list[str], address: str, folder: Path, *, pods: int, processes: int, steps: int
) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    own = {
        "--nnodes": pods,
        "--nproc-per-node": processes,
        "--rdzv-endpoint": f"127.0.0.1:{port}",
        "--rdzv-id": f"launch-{pods}",
        "--address": address,
        "--out": folder / "out",
    }
    given = [part.partition("=") for part in arguments]
    command = [f"{flag}={own.get(flag, value)}" if value else flag for flag, _, value in given]
    command = [
        str(ROOT / "trainer_example" / "train.py") if part.endswith("train.py") else part for part in command
    ]
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *command, *SMALL, f"--steps={steps}"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(pods)
    ]
    try:
        said = [agent.communicate(timeout=SECONDS)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0] * pods, "\n".join(said)
