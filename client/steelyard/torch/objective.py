"""The scalar whose gradient, averaged over the ranks, is that of the weighted mean over the global batch."""

from __future__ import annotations

import numpy as np
import torch


def objective(
    losses: torch.Tensor, weights: torch.Tensor, *, world_size: int, batch_size: int
) -> torch.Tensor:
    """world_size / batch_size times the sum of weight times loss; losses and weights are [n], on one device.

    DistributedDataParallel averages gradients over the ranks, which divides by the world size; so, whatever the sizes
    of the slices, the average of this over the ranks (summed over the micro-batches) is the mean over the global
    batch. A loss that is not finite is left out. float64 for float64 losses, else float32. No device is waited for.
    """
    values = losses if losses.dtype == torch.float64 else losses.float()
    # A weight of 0 alone would not do: 0 times infinity is NaN.
    kept = values if known_finite(values) else torch.where(torch.isfinite(values), values, 0.0)
    return (kept * weights.to(values.dtype)).sum() * (world_size / batch_size)


def known_finite(values: torch.Tensor) -> bool:
    """Whether all values (float32 or float64) are finite, as far as the host can tell without waiting for a device.

    On a CPU it can, for half of what masking them costs.
    """
    return values.device.type == "cpu" and bool(np.isfinite(values.detach().numpy()).all())
