"""Hands the methods that users have installed to the parts that know the built-in ones."""

from __future__ import annotations

from typing import Any

from steelyard import plugins, weigh
from steelyard.registry import Registry
from steelyard_server.policies import draw, mix

FAMILIES: tuple[Registry[Any], ...] = (draw.METHODS, mix.METHODS, weigh.METHODS)
"""The methods of each family, by name."""


def register() -> list[str]:
    """Registers what the entry points of `steelyard.methods` name; what is wrong with those that give no method.

    One that is faulty leaves the others as they are. Calling it again registers what has come since.
    """
    faults = []
    for entry in plugins.entry_points():
        try:
            plugins.register(entry, *FAMILIES)
        except plugins.PluginError as error:
            faults.append(str(error))
    return faults
