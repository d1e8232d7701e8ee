"""Who trains together: rank, world size and attempt, from the arguments or from torch.distributed."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch.distributed as dist

from steelyard.arguments import whole
from steelyard.attempt import from_environment, random_token, resolve
from steelyard.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Ranks:
    """A process among those that share every batch."""

    rank: int
    world_size: int
    group: dist.ProcessGroup | None
    """None means the default group where `together`, else nothing."""
    together: bool
    """Whether a process group connects all the ranks, of whom there are several."""


def find_ranks(rank: int | None, world_size: int | None, group: dist.ProcessGroup | None) -> Ranks:
    """The given numbers; what is not given comes from the process group, else this process is alone.

    InvalidArgument: a rank that is not below the world size, a group that this process is not in, or numbers that
    differ from those of a group that was given.
    """
    if not (dist.is_available() and dist.is_initialized()):
        if group is not None:
            raise InvalidArgument("group: expected torch.distributed to be initialised, and it is not")
        return _checked(rank or 0, 1 if world_size is None else world_size, None, together=False)
    mine, size = dist.get_rank(group), dist.get_world_size(group)
    if mine < 0:
        raise InvalidArgument("group: expected a process group that this process is in, got another one")
    given = (mine if rank is None else rank, size if world_size is None else world_size)
    if group is not None and given != (mine, size):
        raise InvalidArgument(
            f"expected rank {mine} and world size {size}, those of the group that was given; got rank {given[0]} and "
            f"world size {given[1]}"
        )
    return _checked(*given, group, together=given == (mine, size) and size > 1)


def _checked(rank: int, world_size: int, group: dist.ProcessGroup | None, *, together: bool) -> Ranks:
    size = whole("world_size", world_size, at_least=1, below=2**32)
    return Ranks(whole("rank", rank, below=size), size, group, together)


def share_token(attempt: str | None, ranks: Ranks, replica: int) -> str:
    """The attempt's token, the same on all ranks: the one given; one that rank 0 makes and broadcasts to its process
    group; without a group, what steelyard.attempt finds.

    A group that is only a part of all processes may have others beside it that share its ranks' slices (replicas) and
    must share the token too. There the launcher's variables come first, and a replica without them raises
    InvalidArgument.
    """
    if attempt is not None or not ranks.together:
        return resolve(attempt, world_size=ranks.world_size, replica=replica)
    partial = ranks.group is not None and dist.get_world_size(ranks.group) < dist.get_world_size()
    if replica or (partial and from_environment(os.environ) is not None):
        return resolve(None, world_size=ranks.world_size, replica=replica)
    box = [random_token() if ranks.rank == 0 else None]
    source = 0 if ranks.group is None else dist.get_global_rank(ranks.group, 0)
    dist.broadcast_object_list(box, src=source, group=ranks.group)
    return resolve(box[0], world_size=ranks.world_size)
