"""Extremes: both ends of the range count most, the middle least.

    f(h) = |h|

Source: "extremes" in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from steelyard.source import Source
from steelyard.weigh.rule import Array
from steelyard.weigh.seed import SeedRule, seed_source


@dataclass(frozen=True)
class Extremes(SeedRule):
    """Favours the lowest and the highest losses; weights differ by exp(delta / r) at most."""

    method: ClassVar[str] = "extremes"
    source: ClassVar[Source] = seed_source('strategy "extremes"')

    def score(self, xp: Any, h: Array) -> Array:
        """|h|."""
        return xp.abs(h)
