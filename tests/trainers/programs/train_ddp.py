"""A training job over gloo: train_ddp.py ADDRESS FOLDER OPTIONS

Trains, in lockstep, a small network on each run of OPTIONS: JSON with `runs`, `steps`, `every`, `launch`, and `deaths`,
[launch, rank, step] of those that happen by themselves. Goes on from FOLDER/checkpoint.pt where there is one; rank 0
writes it every `every` steps: networks, optimisers and the samplers' states. Each rank appends what it trained to
FOLDER/trained-LAUNCH-RANK.jsonl. Rank and world size are torchrun's variables, and so is the rendezvous unless
RENDEZVOUS names a file for it; under torchrun a launch is one of its restarts.
"""

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import steelyard
from steelyard.torch import BatchSampler

SIZE = 96
FEATURES = 6


def examples() -> TensorDataset:
    """Ids, inputs and targets; some examples are far harder than others."""
    made = torch.Generator().manual_seed(11)
    inputs = torch.randn(SIZE, FEATURES, generator=made, dtype=torch.float64)
    noise = torch.randn(SIZE, generator=made, dtype=torch.float64).exp()
    return TensorDataset(torch.arange(SIZE), inputs, inputs.sum(1).sin() + 0.3 * noise)


def network() -> torch.nn.Module:
    torch.manual_seed(5)
    layers = torch.nn.Sequential(torch.nn.Linear(FEATURES, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    return layers.double()


def rounded(losses: torch.Tensor) -> torch.Tensor:
    """The losses as they are reported.

    Gradients are summed in another order by another number of ranks, so the losses of later steps differ in their last
    bits, and other losses are other draws. In float64 those bits are some 1e-14; a loss that is reported in steps of
    2**-10 then changes with a probability of about 1e-11, some 1e-7 in all of a job. So batches can be compared.
    """
    return torch.round(losses.detach() * 1024) / 1024


class Momentum:
    """Gradient descent with momentum. torch.optim brings torch's compiler, half of what a process takes to start."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = list(model.parameters())
        self._velocities = [torch.zeros_like(one) for one in self._parameters]

    def step(self) -> None:
        with torch.no_grad():
            for parameter, velocity in zip(self._parameters, self._velocities, strict=True):
                assert parameter.grad is not None
                velocity.mul_(0.9).add_(parameter.grad)
                parameter.sub_(velocity, alpha=0.02)

    def state_dict(self) -> list[torch.Tensor]:
        return self._velocities

    def load_state_dict(self, state: list[torch.Tensor]) -> None:
        self._velocities = state


class Student:
    """A network that one run teaches."""

    def __init__(self, run: steelyard.Run) -> None:
        self.sampler = BatchSampler(run, timeout=90.0)
        inner = network()
        self.model = DistributedDataParallel(inner) if dist.get_world_size() > 1 else inner
        self.optimiser = Momentum(inner)
        self._inner = inner
        self._batch_size = run.info().batch_size

    def state(self) -> dict[str, Any]:
        return {
            "model": self._inner.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "sampler": self.sampler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.sampler.load_state_dict(state["sampler"])

    def train(self, ids: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
        """One step; what was trained."""
        step = self.sampler.step
        losses = (self.model(inputs).squeeze(1) - targets).square()
        reported = rounded(losses)
        weights = self.sampler.report(reported, ids=ids)
        # The mean over the global batch, whose gradient DistributedDataParallel averages over the ranks.
        loss = (weights * losses).sum() * self.sampler.world_size / self._batch_size
        self.model.zero_grad()
        loss.backward()
        self.optimiser.step()
        return {"run": self.sampler.run.name, "step": step, "ids": ids.tolist(), "losses": reported.tolist()}


def write(students: list[Student], step: int, checkpoint: Path) -> None:
    """Whole or not at all, wherever the process is killed."""
    torch.save({"step": step, "students": [one.state() for one in students]}, checkpoint.with_suffix(".new"))
    with checkpoint.with_suffix(".new").open("rb") as written:
        os.fsync(written.fileno())
    checkpoint.with_suffix(".new").replace(checkpoint)


def train(client: steelyard.Client, folder: Path, options: dict[str, Any]) -> None:
    checkpoint = folder / "checkpoint.pt"
    launch = int(options["launch"] if "launch" in options else os.environ["TORCHELASTIC_RESTART_COUNT"])
    students = [Student(client.run(name)) for name in options["runs"]]
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        step = state["step"]
        for student, one in zip(students, state["students"], strict=True):
            student.load(one)
    dist.barrier()  # nobody writes the next checkpoint before all have read this one
    loaders = [iter(DataLoader(examples(), batch_sampler=student.sampler)) for student in students]
    batches = [next(loader) for loader in loaders]  # joins
    session = students[0].sampler.session
    attempt = None if session is None else session.attempt
    with (folder / f"trained-{launch}-{dist.get_rank()}.jsonl").open("a", encoding="utf-8") as log:
        began = {"start": step, "world_size": dist.get_world_size(), "attempt": attempt}
        print(json.dumps(began), file=log, flush=True)
        while step < options["steps"]:
            for student, batch in zip(students, batches, strict=True):
                print(json.dumps(student.train(*batch)), file=log, flush=True)
            step += 1
            batches = [next(loader) for loader in loaders]
            if [launch, dist.get_rank(), step] in options.get("deaths", []):
                os.kill(os.getpid(), signal.SIGKILL)
            if dist.get_rank() == 0 and (step % options["every"] == 0 or step == options["steps"]):
                write(students, step, checkpoint)
    dist.barrier()
    for student in students:
        student.sampler.close()


def main(address: str, folder: str, options: str) -> None:
    torch.set_num_threads(1)
    rendezvous = os.environ.get("RENDEZVOUS")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}" if rendezvous else "env://",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=60),
    )
    train(steelyard.connect(address, timeout=60.0), Path(folder), json.loads(options))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
