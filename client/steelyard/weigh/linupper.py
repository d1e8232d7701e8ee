"""LinUpper: the more loss the more weight, up to the middle of the range; all above it count the same.

    f(h) = min(h + d, d)

Source: "linupper" in the authors' language model code, called "upper" in their FSDP code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from steelyard.source import Source
from steelyard.weigh.rule import Array
from steelyard.weigh.seed import SeedRule, seed_source


@dataclass(frozen=True)
class LinUpper(SeedRule):
    """Down-weights losses below the middle of the range; weights differ by exp(delta / r) at most."""

    method: ClassVar[str] = "linupper"
    source: ClassVar[Source] = seed_source('strategy "linupper", called "upper" in the FSDP code')

    def score(self, xp: Any, h: Array) -> Array:
        """min(h + d, d)."""
        return xp.where(h < 0.0, h + self.delta, self.delta)
