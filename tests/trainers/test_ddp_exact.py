"""Jobs of DistributedDataParallel that are killed and restarted with other numbers of processes train what one process
trains that nobody disturbs: the same ids, from the same losses."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import steelyard

pytestmark = pytest.mark.xdist_group("ddp-exact")

SCORED = {
    "method": "scored",
    "score": "last_loss",
    "transform": "power",
    "floor": 0.1,
    "sampling": "distinct",
    "unseen": "max",
}
POLICIES: dict[str, dict[str, Any]] = {
    "plain": {"draw": SCORED},
    "weighted": {"draw": SCORED, "weigh": {"method": "importance", "beta": 1.0}},
}
SIZE = 96
STEPS = 140
EVERY = 6


class Job:
    """Launches of one training job. What a launch trained counts up to the step that the next one starts at."""

    def __init__(
        self, start: Callable[..., Any], client: steelyard.Client, folder: Path, prefix: str
    ) -> None:
        self._start = start
        self._client = client
        self.folder = folder
        self.runs = [f"{prefix}-{name}" for name in POLICIES]
        self._launches = 0
        folder.mkdir()
        for name, policy in zip(self.runs, POLICIES.values(), strict=True):
            client.create_run(name, dataset="d", batch_size=12, seed=3, staleness=4, **policy)

    def launch(self, world_size: int) -> list[Any]:
        """The processes, which have begun to train."""
        options = {"runs": self.runs, "steps": STEPS, "every": EVERY, "launch": self._launches}
        rendezvous = self.folder / f"rendezvous-{self._launches}"
        self._launches += 1
        return [
            self._start(
                *("train_ddp.py", self._client.address, self.folder, json.dumps(options)),
                RANK=str(rank),
                WORLD_SIZE=str(world_size),
                RENDEZVOUS=str(rendezvous),
            )
            for rank in range(world_size)
        ]

    def step(self) -> int:
        """How far the present launch has trained all of its runs."""
        log = self.folder / f"trained-{self._launches - 1}-0.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return json.loads(lines[0])["start"] + (len(lines) - 1) // len(self.runs) if lines else 0

    def trained(self) -> tuple[list[int], dict[str, list[tuple[list[int], list[float]]]]]:
        """The world size of each launch; for each run the (ids, losses) of each step, of all ranks in order."""
        launches = []
        for launch in range(self._launches):
            logs = [
                [
                    json.loads(line)
                    for line in path.read_text(encoding="utf-8").splitlines()
                    if line.endswith("}")
                ]
                for path in sorted(self.folder.glob(f"trained-{launch}-*.jsonl"))
            ]
            assert len(logs) == logs[0][0]["world_size"]
            launches.append(logs)
        ends = [logs[0][0]["start"] for logs in launches[1:]] + [STEPS]
        counting: dict[str, list[tuple[list[int], list[float]]]] = {name: [] for name in self.runs}
        for logs, end in zip(launches, ends, strict=True):
            assert len({log[0]["start"] for log in logs}) == 1
            for name in self.runs:
                ranks = [
                    [line for line in log[1:] if line["run"] == name and line["step"] < end] for log in logs
                ]
                for parts in zip(*ranks, strict=True):
                    assert {part["step"] for part in parts} == {len(counting[name])}
                    ids, losses = (
                        list(itertools.chain(*(part[key] for part in parts))) for key in ("ids", "losses")
                    )
                    counting[name].append((ids, losses))
        return [logs[0][0]["world_size"] for logs in launches], counting

    def parameters(self) -> list[torch.Tensor]:
        """The trained networks."""
        state = torch.load(self.folder / "checkpoint.pt")
        assert state["step"] == STEPS
        return [
            torch.cat([one.flatten() for one in student["model"].values()]) for student in state["students"]
        ]


def columns(run: steelyard.Run) -> dict[str, Any]:
    """The columns that the draw of the next step reads."""
    with run.join(prefetch=1) as session:
        session.next()
    return {"last_loss": run.column("last_loss"), "version": run.stats().state_version}


@pytest.mark.timeout(600)
def test_a_job_killed_with_its_server_and_restarted_with_4_2_and_3_processes_trains_as_one_undisturbed_process(
    server, start, wait_for, tmp_path
):
    client = server.client(timeout=60.0)
    client.create_dataset("d", SIZE)
    calm, job = Job(start, client, tmp_path / "calm", "calm"), Job(start, client, tmp_path / "job", "job")
    moments = random.Random(23)

    def reach(first: int) -> None:
        """Lets the job train up to some step of the twelve from `first` on."""
        step = first + moments.randrange(12)
        wait_for(lambda: job.step() >= step, f"step {step}")

    processes = job.launch(4)
    reach(10)
    processes[moments.randrange(1, 4)].kill()
    for process in processes:
        wait_for(lambda process=process: not process.running, "the end of a rank whose peer died")
    processes = job.launch(4)
    reach(35)
    server.kill()
    server.start()
    reach(50)
    for process in moments.sample(processes, 4):
        process.kill()
    server.kill()
    server.start()
    processes = job.launch(2)
    reach(75)
    server.kill()
    for process in processes:
        process.kill()
    server.start()
    processes = job.launch(3)
    reach(100)
    server.kill()
    server.start()
    for process in processes:
        process.expect(0)

    (alone,) = calm.launch(1)
    alone.expect(0)
    worlds, trained = job.trained()
    assert worlds == [4, 4, 2, 3]
    _, expected = calm.trained()
    for name, twin in zip(job.runs, calm.runs, strict=True):
        assert len(trained[name]) == STEPS
        for step, (one, other) in enumerate(zip(trained[name], expected[twin], strict=True)):
            assert one == other, (name, step)
        run, calm_run = client.run(name), client.run(twin)
        for step, (ids, _) in enumerate(trained[name]):
            served, undisturbed = run.batch(step), calm_run.batch(step)
            assert served.ids.tolist() == ids
            assert served.digest == undisturbed.digest
            np.testing.assert_array_equal(served.probability, undisturbed.probability)
            np.testing.assert_array_equal(served.weight, undisturbed.weight)
        assert run.history(range(SIZE)) == calm_run.history(range(SIZE))
        assert run.stats().reported_losses == calm_run.stats().reported_losses == STEPS * 12
        mine, theirs = columns(run), columns(calm_run)
        np.testing.assert_array_equal(mine["last_loss"], theirs["last_loss"])
        assert mine["version"] == theirs["version"]
    plain, weighted = (trained[name] for name in job.runs)
    assert plain != weighted, "the weights reach the losses, and the losses the draws"
    for network, alike in zip(job.parameters(), calm.parameters(), strict=True):
        torch.testing.assert_close(network, alike, rtol=1e-9, atol=1e-9)
