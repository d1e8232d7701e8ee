"""Upper: the more loss the more weight, over the whole range.

    f(h) = (h + d) / 2

Source: "upper" in the authors' language model code; not to be confused with the "upper" of their FSDP code,
which is LinUpper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from steelyard.source import Source
from steelyard.weigh.rule import Array
from steelyard.weigh.seed import SeedRule, seed_source


@dataclass(frozen=True)
class Upper(SeedRule):
    """Favours high losses; weights differ by exp(delta / r) at most."""

    method: ClassVar[str] = "upper"
    source: ClassVar[Source] = seed_source('strategy "upper"')

    def score(self, xp: Any, h: Array) -> Array:
        """(h + d) / 2."""
        return (h + self.delta) * 0.5
