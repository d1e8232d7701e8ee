"""Several samplers live in one process, each with a loader of its own that forks workers again and again."""

import sys
import uuid

import torch
from torch.utils.data import DataLoader, Dataset

import steelyard
import steelyard.torch

SAMPLERS, ROUNDS, STEPS = 3, 8, 8


class Numbers(Dataset):
    def __len__(self):
        return 400

    def __getitem__(self, example):
        return example, float(example % 10)


client = steelyard.connect(sys.argv[1])
samplers = []
for _ in range(SAMPLERS):
    run = client.create_run(uuid.uuid4().hex, dataset="d", batch_size=16, staleness=8)
    samplers.append(steelyard.torch.BatchSampler(run, steps=STEPS))
for _ in range(ROUNDS):
    for sampler in samplers:
        loader = DataLoader(
            Numbers(), batch_sampler=sampler, num_workers=2, timeout=20, multiprocessing_context="fork"
        )
        for ids, losses in loader:
            sampler.update(losses.to(torch.float32), ids=ids)
print("trained", [sampler.step for sampler in samplers])
for sampler in samplers:
    sampler.close()
