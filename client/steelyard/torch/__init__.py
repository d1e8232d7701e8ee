"""Steelyard for PyTorch: batches for a DataLoader, per-example losses back, a scalar to call backward() on.

    sampler = steelyard.torch.BatchSampler(run)
    for x, y in DataLoader(dataset, batch_sampler=sampler, num_workers=4):
        loss = sampler.update(criterion(model(x), y))  # criterion with reduction="none"
        loss.backward()

The sampler is in steelyard.torch.sampler. Beside it, each alone: what is handed out and not trained (pending), who
trains together (ranks), weights over all ranks (weighing), the scalar (objective), losses on their way from a device
(copies, reporter).
"""

from steelyard.torch.sampler import BatchSampler

__all__ = ["BatchSampler"]
