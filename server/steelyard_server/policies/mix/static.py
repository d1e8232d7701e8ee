"""Fixed masses: q_c ∝ masses_c, or in proportion to the groups' sizes where none are given.

Source: the fixed domain mixtures that language models are trained with, for example CodeGen2's. A group's mass says
nothing of how often its examples repeat: q_c · B · steps / n_c times on average.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from steelyard.source import Source
from steelyard_server.policies.mix.contract import Float64s, Int64s, Mix, SharePerGroup, State
from steelyard_server.policies.mix.shares import drawable


class Static(Mix):
    """The same masses at every step."""

    source: ClassVar[Source] = Source(
        paper="CodeGen2: Lessons for Training LLMs on Programming and Natural Languages (Nijkamp et al., 2023)",
        where="mixture of domains",
    )
    never_reported: ClassVar[str] = "Drawn like every other example of their group: reports are not read."
    per_group: ClassVar[dict[str, float]] = {"shares": 0.0}

    method: Literal["static"] = "static"
    shares: SharePerGroup | None = None
    """One number a group; they need not sum to 1. Without: the number of examples of each group."""

    def masses(self, state: State, sizes: Int64s, step: int) -> Float64s:
        if self.shares is None:
            return sizes.astype(np.float64)
        return drawable(self.numbers("shares", len(sizes)), sizes)
