"""A rank's slice of a global batch, as a trainer holds it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What `rank` of `world_size` trains at `step`: the n positions from `offset` on of the global batch.

    Picklable, so that it can travel with the examples from a loader's worker. Compares by identity.
    """

    step: int
    """The number of the global batch: 0, 1, 2, ..."""
    ids: npt.NDArray[np.int64]
    """int64[n]: the examples, in batch order."""
    probability: npt.NDArray[np.float64]
    """float64[n], exact: the expected number of copies of the id in the global batch, divided by its size."""
    weight: npt.NDArray[np.float32]
    """float32[n]: what the loss is multiplied by so that the mean over the global batch is the objective, as far as
    that follows from the draw alone. 1 under a rule that reads losses, whose weights are the answer to report()."""
    state_version: int
    """How much the draw knew: how many steps' reports it had folded, or, under staleness "any", how many reports. 0
    where the draw reads none."""
    offset: int
    """Position of the slice in the global batch."""
    batch_size: int
    """Positions of the global batch."""
    digest: int
    """Digest of the step and of all ids of the global batch; see steelyard.wire.batch_digest."""
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"Batch(step={self.step}, ids=<{len(self)} from {self.offset} of {self.batch_size}>, "
            f"rank={self.rank} of {self.world_size}, state_version={self.state_version}, "
            f"digest={self.digest:016x})"
        )
