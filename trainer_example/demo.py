"""Shows what Steelyard does: `make demo`.

Starts `steelyard serve` as a process of its own. Then for every seed and each of two weighers, uniform and LinUpper,
two processes train a small language model (train.py) from the same start on the same batches. In the middle of every
training the server is killed with -9 and started again; nobody tells the trainers. In the end the server's own record
is audited, the losses are compared, and a picture is written.

Exits with 0 if nothing was lost, whichever weigher is better.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from audit import Audit, audit
from picture import draw
from table import held_out_table, verdict, waits

import steelyard
from steelyard.testing import ServerProcess

HERE = Path(__file__).resolve().parent
RANKS = 2
BATCH_SIZE = 32
# r as in the seed paper's runs; as there, the weights are uniform for the first twentieth of the steps.
WEIGHERS: Mapping[str, Mapping[str, Any]] = {
    "uniform": {"method": "uniform"},
    "linupper": {"method": "linupper", "r": 0.4},
}
WARMUP_SHARE = 1 / 20
# That a worker has to write where it stands; it takes milliseconds.
LAST_WORDS_SECONDS = 1.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "out" / "demo.png", help="the picture")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each weigher")
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument(
        "--training-timeout", type=float, default=180.0, help="seconds that one training may take"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one seed and few steps: shows that all of it works"
    )
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.steps = 1, 40
    return args


@dataclass(frozen=True)
class Training:
    """One training that is over."""

    weigher: str
    evaluated: list[int]
    """Steps after which held-out text was evaluated."""
    held_out: list[float]
    """Its loss per byte then, in nats."""
    waited: list[float]
    """Seconds that each step waited for the sampler, on rank 0."""
    killed_at: int
    """The step in which the server was killed."""
    seconds: float
    audit: Audit


def main() -> int:
    args = arguments()
    # A demo that is told to end takes its processes along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="steelyard-demo-"))
    try:
        with ServerProcess(work / "server") as server, server.client() as client:
            print(f"The server is process {server.pid} at {server.address}. Its data and all logs: {work}")
            trainings = [
                train(server, client, weigher, seed, args, work / f"{weigher}-{seed}")
                for seed in range(args.seeds)
                for weigher in WEIGHERS
            ]
            server.terminate()
    except BaseException:
        print(f"The demo ended early. What was written so far is in {work}", file=sys.stderr)
        raise
    whole = report(trainings, args.out)
    print(f"Took {time.monotonic() - began:.0f} s. Picture: {args.out}")
    if whole:
        shutil.rmtree(work)
    return 0 if whole else 1


# -- one training ------------------------------------------------------------------------------------------------------


def train(
    server: ServerProcess,
    client: steelyard.Client,
    weigher: str,
    seed: int,
    args: argparse.Namespace,
    out: Path,
) -> Training:
    """Trains once, with the server killed in the middle. TimeoutError, RuntimeError: it did not end well."""
    began = time.monotonic()
    deadline = began + args.training_timeout
    weigh = dict(WEIGHERS[weigher])
    if weigher != "uniform":
        weigh["warmup_steps"] = int(args.steps * WARMUP_SHARE)
    options = {
        "address": server.address,
        "run": out.name,
        "weigh": json.dumps(weigh),
        "batch-size": BATCH_SIZE,
        "seed": seed,
        "steps": args.steps,
        "evaluate-every": max(args.steps // 5, 1),
        "out": out,
    }
    with ranks(options, out) as processes:
        while (step := len(metrics(out))) < args.steps // 2:
            check(processes, out, deadline)
            time.sleep(0.1)
        server.kill()
        server.start()
        while not all(process.poll() == 0 for process in processes):
            check(processes, out, deadline)
            time.sleep(0.1)
    seconds = time.monotonic() - began

    lines = metrics(out)
    evaluations = [line for line in lines if "held_out" in line]
    training = Training(
        weigher=weigher,
        evaluated=[line["step"] for line in evaluations],
        held_out=[line["held_out"] for line in evaluations],
        waited=[line["waited"] for line in lines],
        killed_at=step,
        seconds=seconds,
        audit=audit(client.run(out.name), args.steps),
    )
    print(
        f"{weigher:<8} seed {seed}: {args.steps} steps in {seconds:.0f} s, server killed at step {step}, "
        f"held-out loss {training.held_out[-1]:.4f}, reports lost: {training.audit.losses_lost}",
        flush=True,
    )
    return training


@contextmanager
def ranks(options: Mapping[str, Any], out: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes of one training, as torchrun would start them; none of them is left when this is."""
    out.mkdir()
    # Where a rank gets stuck, the signal that ends it also makes it write where each of its threads stands.
    command = [sys.executable, "-X", "faulthandler", str(HERE / "train.py")]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(RANKS)}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(RANKS):
            environment = {
                **os.environ,
                **common,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "OMP_NUM_THREADS": "1",
            }
            with (out / f"rank-{rank}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait(timeout=30)


def check(processes: list[subprocess.Popen[bytes]], out: Path, deadline: float) -> None:
    """Raises where a training cannot end well any more, with what its processes wrote."""
    failed = [(rank, process.returncode) for rank, process in enumerate(processes) if process.poll()]
    late = time.monotonic() > deadline
    if not failed and not late:
        return
    workers = [worker for process in processes for worker in workers_of(process)]
    for process in processes:
        process.send_signal(signal.SIGABRT)
    for process in processes:
        process.wait(timeout=30)
    # After the ranks, whose logs they write to.
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGABRT)
    time.sleep(LAST_WORDS_SECONDS if workers else 0)
    logs = "\n".join(
        f"{log.name}:\n{log.read_text(errors='replace')[-6000:]}" for log in sorted(out.glob("*.log"))
    )
    if failed:
        raise RuntimeError(
            f"rank {failed[0][0]} of {out.name} ended with status {failed[0][1]}, expected 0.\n{logs}"
        )
    raise TimeoutError(
        f"{out.name} is at step {len(metrics(out))} and out of time (--training-timeout).\n{logs}"
    )


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that load data for a rank. None where it has ended, or where the system has no such list."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in children.split()]


def metrics(out: Path) -> list[dict[str, Any]]:
    """What rank 0 has written so far, one entry for each step."""
    path = out / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def free_port() -> int:
    """A port that is free now, below those that systems give to connections by themselves.

    Rank 0 takes it only when it has imported torch, seconds later. Where another program has taken it by then, rank 0
    ends with an error, and rank 1 waits in silence whatever its timeout.
    """
    for port in random.sample(range(10_000, 32_000), 100):
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("expected a free port from 10000 to 31999, got none in 100 tries")


# -- all trainings -----------------------------------------------------------------------------------------------------


def report(trainings: list[Training], picture: Path) -> bool:
    """Prints the table and writes the picture. Returns whether nothing was lost."""
    of = {name: [one for one in trainings if one.weigher == name] for name in WEIGHERS}
    held_out = {name: np.array([one.held_out for one in ones]) for name, ones in of.items()}
    training = {name: np.stack([one.audit.step_losses for one in ones]) for name, ones in of.items()}
    last = {name: np.concatenate([one.audit.last_losses for one in ones]) for name, ones in of.items()}
    waited = np.concatenate([one.waited for one in trainings])
    evaluated = trainings[0].evaluated
    lost = sum(one.audit.losses_lost for one in trainings)
    faults = [f"{one.weigher}: {fault}" for one in trainings for fault in one.audit.faults]
    seeds = len(of["uniform"])

    print(
        f"\nHeld-out loss per byte in nats, mean ± standard deviation over {seeds} seed{'s' if seeds > 1 else ''}\n"
    )
    print(held_out_table(evaluated, held_out))
    print(f"\n{verdict(held_out['linupper'][:, -1] - held_out['uniform'][:, -1])}\n")
    batches = sum(one.audit.batches for one in trainings)
    print(f"batches served               {batches}, of {BATCH_SIZE} examples")
    print(f"reports lost                 {lost} of {batches * BATCH_SIZE} losses")
    print(f"server kills survived        {len(trainings)}")
    print(f"a step waited for its batch  {waits(waited)}")
    print(f"every id once an epoch       {'no' if faults else 'yes'}")
    for fault in faults[:20]:
        print(f"  {fault}")

    draw(
        picture,
        evaluated=evaluated,
        held_out=held_out,
        training=training,
        last=last,
        killed_at=[one.killed_at for one in trainings],
    )
    return lost == 0 and not faults


if __name__ == "__main__":
    sys.exit(main())
