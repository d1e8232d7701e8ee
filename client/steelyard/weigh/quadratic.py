"""Quadratic: the middle of the range counts most, both ends least.

    f(h) = 1 - h^2 / d^2

Source: "mid" in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from steelyard.source import Source
from steelyard.weigh.rule import Array
from steelyard.weigh.seed import SeedRule, seed_source


@dataclass(frozen=True)
class Quadratic(SeedRule):
    """Favours losses in the middle of the range; weights differ by exp(1 / r) at most, whatever delta."""

    method: ClassVar[str] = "quadratic"
    source: ClassVar[Source] = seed_source('strategy "mid"')

    def score(self, xp: Any, h: Array) -> Array:
        """1 - (h / d)^2."""
        return 1.0 - (h / self.delta) ** 2
