"""The weigh rules by their names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from steelyard.weigh import checks
from steelyard.weigh.extremes import Extremes
from steelyard.weigh.importance import Importance
from steelyard.weigh.linupper import LinUpper
from steelyard.weigh.quadratic import Quadratic
from steelyard.weigh.rule import Rule
from steelyard.weigh.uniform import Uniform
from steelyard.weigh.upper import Upper

METHODS: Mapping[str, type[Rule]] = MappingProxyType(
    {rule.method: rule for rule in (Uniform, LinUpper, Quadratic, Extremes, Upper, Importance)}
)
"""Every rule of this package by its name."""


def names() -> tuple[str, ...]:
    """The names of all rules that find knows."""
    return tuple(METHODS)


def find(name: Any) -> type[Rule]:
    """The rule of that name. ValueError: none has it; the message lists the known ones and the nearest."""
    return METHODS[checks.choice("weigh.method", name, names())]
