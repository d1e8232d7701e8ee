"""The draw methods, one a file, and the table of them."""

from __future__ import annotations

from steelyard.registry import Registry
from steelyard_server.policies.draw.contract import Draw, Drawer, Drawn, Examples
from steelyard_server.policies.draw.scored import Scored
from steelyard_server.policies.draw.shuffle import Shuffle

METHODS: Registry[Draw] = Registry("draw", Draw, (Scored, Shuffle))

__all__ = ["METHODS", "Draw", "Drawer", "Drawn", "Examples"]
