"""Steelyard for PyTorch: batches for a DataLoader, per-example losses back, a scalar to call backward() on.

    sampler = steelyard.torch.BatchSampler(run)
    for x, y in DataLoader(dataset, batch_sampler=sampler, num_workers=4):
        loss = sampler.update(criterion(model(x), y))  # criterion with reduction="none"
        loss.backward()

The sampler is in steelyard.torch.sampler. Beside it, each alone: what is handed out and not trained (pending), who
trains together (ranks), weights over all ranks (weighing), the scalar (objective), losses on their way from a device
(copies, reporter).
"""

try:
    import torch as _torch  # noqa: F401 -- asked for here, so that whoever lacks it learns what to install
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'steelyard.torch needs PyTorch ({error}); install it with: pip install "steelyard[torch]"',
        name=error.name,
    ) from error

from steelyard.torch.sampler import BatchSampler

__all__ = ["BatchSampler"]
