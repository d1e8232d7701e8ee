"""One rank of a training job for test_ddp_*: ddp_rank.py RANK WORLD_SIZE INIT_FILE ADDRESS CASES OUT

Trains each case of the JSON file CASES under DistributedDataParallel over gloo and saves, for each, what came of it to
the file OUT. Run as a script, because a process group is one to a process.
"""

import json
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

FEATURES = 3


def examples(size: int) -> TensorDataset:
    """Ids, inputs and targets; some examples are far harder than others."""
    made = torch.Generator().manual_seed(11)
    inputs = torch.randn(size, FEATURES, generator=made, dtype=torch.float64)
    targets = torch.randn(size, generator=made, dtype=torch.float64).exp()
    return TensorDataset(torch.arange(size), inputs, targets)


def model() -> torch.nn.Module:
    torch.manual_seed(5)
    return torch.nn.Linear(FEATURES, 1).double()


def train(sampler: BatchSampler, size: int, network: torch.nn.Module, steps: int) -> dict[str, Any]:
    """Gradient descent; the averaged gradient of each step, and the ids of each micro-batch."""
    loader: DataLoader[Any] = DataLoader(examples(size), batch_sampler=sampler)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
    parts = sampler._micro_batches
    gradients, served = [], []
    for at, (ids, inputs, targets) in enumerate(loader, 1):
        losses = (network(inputs).squeeze(1) - targets).square()
        sampler.update(losses, ids=ids).backward()
        served.append(ids.tolist())
        if at % parts == 0:
            gradients.append(
                torch.cat([one.grad.flatten() for one in network.parameters() if one.grad is not None])
            )
            optimiser.step()
            optimiser.zero_grad()
        if at == steps * parts:
            break
    return {"gradients": torch.stack(gradients), "served": served}


def golden(sampler: BatchSampler) -> dict[str, Any]:
    """The batch of losses [.5, 1, 2, 4], half on each rank, times a parameter of 1."""
    theta = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    mine = torch.tensor([[0.5, 1.0], [2.0, 4.0]], dtype=torch.float64)[sampler.rank]
    results = []
    for _, _ids in zip(range(2), sampler, strict=False):
        loss = sampler.update(mine * theta)
        loss.backward()
        assert theta.grad is not None
        dist.all_reduce(theta.grad)
        results.append((loss.item(), theta.grad.item() / sampler.world_size))
        theta.grad = None
    return {"golden": results}


def play(case: dict[str, Any], client: steelyard.Client) -> dict[str, Any]:
    run = client.run(case["run"])
    group = dist.new_group([0, 1]) if case.get("own_group") else None
    with BatchSampler(run, micro_batches=case.get("micro_batches", 1), group=group) as sampler:
        if case.get("golden"):
            return golden(sampler)
        network = DistributedDataParallel(model())
        result = train(sampler, case["size"], network, case["steps"])
        if case.get("resume"):
            state = sampler.state_dict()
            keep = {name: value.clone() for name, value in network.state_dict().items()}
            train(sampler, case["size"], network, 2)  # lost
            # As after a restart: no rank goes on before all have stopped.
            sampler.state_dict()
            dist.barrier()
            sampler.load_state_dict(state)
            network.load_state_dict(keep)
            again = train(sampler, case["size"], network, case["resume"])
            result["gradients"] = torch.cat([result["gradients"], again["gradients"]])
            result["served"] += again["served"]
        assert sampler.session is not None
        result["attempt"] = sampler.session.attempt
        result["state"] = sampler.state_dict()
    return result


def main(rank: str, world_size: str, init_file: str, address: str, cases: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{init_file}",
        rank=int(rank),
        world_size=int(world_size),
        timeout=timedelta(seconds=60),
    )
    client = steelyard.connect(address)
    results = {
        name: play(case, client) for name, case in json.loads(Path(cases).read_text(encoding="utf-8")).items()
    }
    torch.save(results, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
