"""What the rules share that choose some of the batch by rank, whatever library its arrays are of."""

from __future__ import annotations

from steelyard.weigh.batch import Batch
from steelyard.weigh.rule import Array

# A share of the batch that misses an integer by no more than rounding is that integer.
_ROUNDING = 1e-3


def ranks(batch: Batch, scores: Array) -> Array:
    """The rank of each position by descending score, 0 for the highest; of equal ones the earlier is higher.

    Positions that are not valid come behind all others.
    """
    xp = batch.xp
    keys = xp.reshape(xp.where(batch.valid, -scores, xp.inf), (-1,))
    order = xp.argsort(keys, stable=True)
    return xp.reshape(xp.argsort(order, stable=True), scores.shape)


def part(batch: Batch, share: float) -> Array:
    """How many a share of the valid positions is: rounded down, but at least 1. On the device."""
    xp = batch.xp
    whole = xp.floor(valid_count(batch) * share + _ROUNDING)
    return xp.where(whole > 1.0, whole, 1.0)


def clipped(batch: Batch, share: float) -> Array:
    """The losses, this share of the valid ones at either end cut to the one next to them. `share` is below 1/2."""
    xp, rank = batch.xp, ranks(batch, batch.losses)
    valid = valid_count(batch)
    cut = xp.floor(valid * share + _ROUNDING)
    high, low = (
        xp.sum(xp.where(batch.valid & (rank == place), batch.losses, 0.0))
        for place in (cut, valid - 1.0 - cut)
    )
    losses = xp.where(batch.losses > high, high, batch.losses)
    return xp.where(losses < low, low, losses)


def valid_count(batch: Batch) -> Array:
    """How many positions are valid. On the device."""
    return batch.xp.sum(batch.xp.where(batch.valid, batch.xp.ones_like(batch.losses), 0.0))


def chosen_weights(batch: Batch, chosen: Array) -> Array:
    """n/k for the k positions that are chosen and valid, 0 for the others."""
    xp = batch.xp
    ones = xp.where(chosen & batch.valid, xp.ones_like(batch.losses), 0.0)
    k = xp.sum(ones)
    return ones * (batch.n / xp.where(k > 0.0, k, 1.0))
