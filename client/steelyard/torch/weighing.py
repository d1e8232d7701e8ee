"""The weights of this rank's losses, made on their device from the losses of all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist

from steelyard.split import split
from steelyard.torch.pending import Part
from steelyard.torch.ranks import Ranks
from steelyard.weigh import Context, Rule


def weigh_together(
    losses: torch.Tensor, rule: Rule, part: Part, ranks: Ranks, micro_batches: int = 1
) -> torch.Tensor:
    """The weights of `losses`, float32[n], those of `part`, under a rule that reads losses.

    One all_gather where the ranks are together; every rank must call. A micro-batch is weighed over the same one of all
    ranks. No device is waited for beyond what the group's backend does.
    """
    step, batch_size = part.batch.step, part.batch.batch_size
    if not ranks.together:
        alone: torch.Tensor = rule.weights(losses, Context(step=step))
        return alone
    # Slices differ by one position at most, and the first ranks have the longer ones.
    longer = batch_size % ranks.world_size
    longest, shortest = (
        split(split(batch_size, ranks.world_size, rank)[1], micro_batches, part.index)[1]
        for rank in (0, ranks.world_size - 1)
    )
    row = torch.nn.functional.pad(losses, (0, longest - len(losses)))
    rows = row.new_empty(ranks.world_size, longest)
    # Not all_gather_into_tensor, which gloo has only of late.
    dist.all_gather(list(rows.unbind()), row, group=ranks.group)
    mask = None
    if longest > shortest:
        number = torch.arange(ranks.world_size, device=losses.device)
        counts = torch.where(number < longer, longest, shortest)
        mask = torch.arange(longest, device=losses.device) < counts.unsqueeze(1)
    weights: torch.Tensor = rule.weights(rows, Context(step=step, mask=mask))
    return weights[ranks.rank, : len(losses)]
