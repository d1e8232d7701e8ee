"""torchrun's restarts, and launches of it one after another, are told apart without configuration."""

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.xdist_group("torchrun")

HERE = Path(__file__).parent
SCORED = {"method": "scored", "score": "last_loss", "floor": 0.1}
STEPS = 30
# Three rounds of processes that each import torch, on a machine with much else to do.
DEADLINE = 300.0
RUN: dict[str, Any] = {"dataset": "d", "batch_size": 10, "seed": 3, "staleness": 4, "draw": SCORED}


def torchrun(program: str, *arguments: object, flags: tuple[object, ...]) -> None:
    """Runs a job to its end, which must be a good one."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *map(str, flags),
        str(HERE / "programs" / program),
    ]
    try:
        done = subprocess.run(
            [*command, *map(str, arguments)],
            # torchrun 2.13 keeps one store over its restarts, where gloo finds the addresses of the dead.
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=DEADLINE,
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"expected the job to end within {DEADLINE} s; it wrote:\n{_text(error.stdout)}")
    assert done.returncode == 0, _text(done.stdout)


def _text(written: bytes | None) -> str:
    return (written or b"")[-8000:].decode(errors="replace")


def lines(folder: Path, launch: int) -> list[list[dict[str, Any]]]:
    """What each rank of a launch wrote down, in rank order."""
    return [
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(folder.glob(f"trained-{launch}-*.jsonl"))
    ]


def trained(ranks: list[list[dict[str, Any]]], end: int) -> list[list[int]]:
    """The ids of each step of a launch up to `end`, of all ranks in order."""
    steps = zip(*([line for line in rank[1:] if line["step"] < end] for rank in ranks), strict=True)
    return [list(itertools.chain(*(part["ids"] for part in parts))) for parts in steps]


@pytest.mark.timeout(600)
def test_ranks_that_die_are_restarted_by_torchrun_and_the_run_goes_back_once_each_time(
    server, start, tmp_path
):
    """Rank 2 dies at step 9 of the first round, rank 1 at step 20 of the second; the last step is trained by another
    launch of torchrun, of two processes."""
    client = server.client(timeout=60.0)
    client.create_dataset("d", 96)
    run, calm = (client.create_run(name, **RUN) for name in ("job", "calm"))
    job: dict[str, Any] = {"runs": ["job"], "steps": 24, "every": 6, "deaths": [[0, 2, 9], [1, 1, 20]]}
    flags = ("--standalone", "--nproc-per-node", 3, "--max-restarts", 3, "--monitor-interval", 0.1)
    torchrun("train_ddp.py", run.client.address, tmp_path, json.dumps(job), flags=flags)
    rounds = [lines(tmp_path, restart) for restart in range(3)]
    assert not lines(tmp_path, 3), "two deaths, two restarts"
    assert [{rank[0]["start"] for rank in one} for one in rounds] == [{0}, {6}, {18}]
    attempts = [{rank[0]["attempt"] for rank in one} for one in rounds]
    assert [len(one) for one in attempts] == [1, 1, 1], "all ranks of a round agree"
    assert len(set.union(*attempts)) == 3

    again = {**job, "steps": STEPS, "deaths": [], "launch": 9}
    torchrun(
        "train_ddp.py",
        run.client.address,
        tmp_path,
        json.dumps(again),
        flags=("--standalone", "--nproc-per-node", 2),
    )
    rounds.append(lines(tmp_path, 9))
    assert [rank[0]["start"] for rank in rounds[-1]] == [24, 24]

    (tmp_path / "calm").mkdir()
    alone = {"runs": ["calm"], "steps": STEPS, "every": STEPS, "launch": 0}
    rendezvous = str(tmp_path / "rendezvous")
    start(
        *("train_ddp.py", calm.client.address, tmp_path / "calm", json.dumps(alone)),
        RANK="0",
        WORLD_SIZE="1",
        RENDEZVOUS=rendezvous,
    ).expect(0)
    expected = trained(lines(tmp_path / "calm", 0), STEPS)
    counting = [trained(ranks, end) for ranks, end in zip(rounds, (6, 18, 24, STEPS), strict=True)]
    assert list(itertools.chain(*counting)) == expected
    assert [run.batch(step).ids.tolist() for step in range(STEPS)] == expected
    assert run.history(range(96)) == calm.history(range(96))
    assert run.stats().reported_losses == STEPS * 10
    states = [torch.load(folder / "checkpoint.pt")["students"][0] for folder in (tmp_path, tmp_path / "calm")]
    for one, other in zip(*(state["model"].values() for state in states), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.timeout(600)
def test_launches_with_one_run_id_and_port_and_no_process_group_have_tokens_of_their_own(server, tmp_path):
    """Sessions without torch, which find the token in the environment alone, under a launcher that was told everything
    that could be the same: the second launch goes back to the step that it asks for."""
    client = server.client(timeout=60.0)
    client.create_dataset("e", 60)
    run = client.create_run("sessions", **{**RUN, "dataset": "e"})
    port = free_port()
    flags = ("--master-addr", "127.0.0.1", "--master-port", port, "--rdzv-id", "none")
    attempts = []
    for launch, (world_size, first, end) in enumerate([(2, 0, 8), (2, 4, 10)]):
        sizes = ("--nproc-per-node", world_size)
        arguments = (run.client.address, run.name, tmp_path / str(launch), first, end)
        torchrun("train_sessions.py", *arguments, flags=(*flags, *sizes))
        told = [json.loads(one.read_text(encoding="utf-8")) for one in sorted(tmp_path.glob(f"{launch}-*"))]
        assert len(told) == world_size
        (attempt,) = {one["attempt"] for one in told}
        attempts.append(attempt)
        served = [list(itertools.chain(*parts)) for parts in zip(*(one["ids"] for one in told), strict=True)]
        assert served == [run.batch(step).ids.tolist() for step in range(first, end)]
    assert len(set(attempts)) == 2
    assert all(one.startswith("torchelastic:none:0:") for one in attempts)
    assert run.stats().reported_losses == 100
