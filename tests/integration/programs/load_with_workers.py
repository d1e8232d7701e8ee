"""Trains through a DataLoader whose workers hold the run's handle: ADDRESS, START METHOD."""

import multiprocessing
import sys

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

import steelyard


class Examples(Dataset):
    """Holds a handle that was used in the parent, and asks the server once in each worker."""

    def __init__(self, run):
        self.run = run
        self.said = None

    def __getitem__(self, index):
        if self.said is None:
            try:
                self.said = str(self.run.info().batch_size)
            except steelyard.FailedPrecondition as error:
                self.said = error.code
        worker = get_worker_info()
        assert worker is not None
        return index, worker.id, self.said

    def __len__(self):
        return self.run.info().dataset_size


def main(address, start):
    run = steelyard.connect(address).run("r").fork(f"loaded by {start}".replace(" ", "-"), step=0)
    with run.join(prefetch=4) as session:
        batches = []

        def ids():
            for _ in range(30):
                batches.append(session.next(timeout=20))
                yield batches[-1].ids.tolist()

        loader = DataLoader(
            Examples(run),
            batch_sampler=Reiterable(ids),
            num_workers=2,
            multiprocessing_context=multiprocessing.get_context(start),
            collate_fn=collate,
        )
        heard = {}
        for step, (indices, worker, said) in enumerate(loader):
            assert indices.tolist() == batches[step].ids.tolist()
            heard[worker] = said
            session.report(batches[step], np.ones(16))
    print(f"batches {len(batches)}, reported {run.stats().reported_losses}")
    for worker in sorted(heard):
        print(f"worker: {heard[worker]}")


class Reiterable:
    """A batch sampler over a generator function."""

    def __init__(self, function):
        self.function = function

    def __iter__(self):
        return self.function()

    def __len__(self):
        return 30


def collate(items):
    return torch.tensor([index for index, _, _ in items]), items[0][1], items[0][2]


if __name__ == "__main__":
    main(*sys.argv[1:])
