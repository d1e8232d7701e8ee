"""Equal mass for every group, or for every subclass that a group would be cut into.

    by = "group":      q_c ∝ 1 where n_c > 0
    by = "subclasses": q_c ∝ m_c = max(1, floor(n_c / max(n_min, least))), n_min the smallest group that is not empty

Source: subclass-balancing contrastive learning cuts class c into m_c clusters of about the size of the smallest class
and draws clusters alike. Where the column holds clusters, "group" is that draw; where it holds classes, "subclasses"
gives each class as much as its clusters would have together.

The masses follow from the sizes of the moment and nothing is remembered, so group ids may be set anew while the run
goes on (clusters made again every few epochs).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.policies.mix.contract import Float64s, Int64s, Mix, State


class GroupBalanced(Mix):
    """Groups alike, whatever their sizes."""

    source: ClassVar[Source] = Source(
        paper="Subclass-balancing Contrastive Learning for Long-tailed Recognition (Hou et al., 2023)",
        where="number of clusters of a class; SimCLR/main.py of the authors' code",
    )
    never_reported: ClassVar[str] = "Drawn like every other example of their group: reports are not read."

    method: Literal["group_balanced"] = "group_balanced"
    by: Literal["group", "subclasses"] = "group"
    """Every group alike, or every subclass that it would be cut into."""
    least: Annotated[int, Field(ge=1)] = 10
    """The smallest size of a subclass."""

    def masses(self, state: State, sizes: Int64s, step: int) -> Float64s:
        filled = sizes > 0
        if self.by == "group" or not filled.any():
            return filled.astype(np.float64)
        size = max(int(sizes[filled].min()), self.least)
        return np.where(filled, np.maximum(sizes // size, 1), 0).astype(np.float64)
