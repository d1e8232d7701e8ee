"""The cycle by torchrl: its prioritised sampler, and the compiled sum tree beneath that alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torchrl import _torchrl  # type: ignore[import-not-found]
from torchrl.data.replay_buffers.samplers import PrioritizedSampler  # type: ignore[import-not-found]
from torchrl.data.replay_buffers.storages import LazyTensorStorage  # type: ignore[import-not-found]

from tests.benchmarks.programs import cycles
from tests.benchmarks.programs.cycles import Case


def cases_of(size: int) -> Mapping[str, Callable[[], Case]]:
    return {"PrioritizedSampler": lambda: _sampler(size), "sum tree alone": lambda: _tree(size)}


def _sampler(size: int) -> Case:
    """Sum tree and min tree in float32, and the importance weights, which its sample makes."""
    sampler = PrioritizedSampler(size, alpha=1.0, beta=0.4, eps=0.0)
    storage = LazyTensorStorage(size)
    storage.set(range(min(size, 1)), torch.zeros(1, 1, dtype=torch.uint8))
    for first, values in cycles.chunks(size):
        ids = torch.arange(first, first + len(values))
        storage.set(range(first, first + len(values)), torch.zeros(len(values), 1, dtype=torch.uint8))
        sampler.extend(ids)
        sampler.update_priority(ids, torch.from_numpy(values))
    return Case(
        lambda batch: sampler.sample(storage, batch)[0],
        lambda ids, values: sampler.update_priority(ids, values),
        torch.from_numpy,
    )


def _tree(size: int) -> Case:
    tree: Any = _torchrl.SumSegmentTreeFp32(size)
    for first, values in cycles.chunks(size):
        tree[torch.arange(first, first + len(values))] = torch.from_numpy(values)

    def draw(batch: int) -> Any:
        return tree.scan_lower_bound(torch.rand(batch) * tree.query(0, size))

    return Case(draw, tree.__setitem__, torch.from_numpy)


def told() -> str:
    return f"torchrl {version('torchrl')}, torch {torch.__version__}, {torch.get_num_threads()} threads, float32 sums"


if __name__ == "__main__":
    cycles.main(cases_of, told)
