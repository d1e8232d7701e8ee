"""How a global batch is cut into one slice per rank: the rule of numpy.array_split.

The first batch_size % world_size ranks get one position more than the others, so slices differ by at most
one.
"""

from __future__ import annotations


def split(batch_size: int, world_size: int, rank: int) -> tuple[int, int]:
    """Where the slice of `rank` begins in the global batch, and how many positions it has.

    A rank beyond the batch gets an empty slice. ValueError: a negative batch size, no ranks, or a rank that
    is not below the world size.
    """
    _check(batch_size, world_size)
    if not 0 <= rank < world_size:
        raise ValueError(f"expected a rank from 0 to {world_size - 1} (world size {world_size}), got {rank}")
    share, extra = divmod(batch_size, world_size)
    return rank * share + min(rank, extra), share + (rank < extra)


def sizes(batch_size: int, world_size: int) -> list[int]:
    """The number of positions of each rank's slice; they sum to the batch size. ValueError as for split."""
    _check(batch_size, world_size)
    share, extra = divmod(batch_size, world_size)
    return [share + 1] * extra + [share] * (world_size - extra)


def _check(batch_size: int, world_size: int) -> None:
    if batch_size < 0:
        raise ValueError(f"expected a batch size of at least 0, got {batch_size}")
    if world_size < 1:
        raise ValueError(f"expected a world size of at least 1, got {world_size}")
