"""Methods that users bring along: classes named by entry points of the group `steelyard.methods`.

    [project.entry-points."steelyard.methods"]
    my_rule = "my_package.my_rule:MyRule"

The entry point has the name of the method, so that looking for one imports that one and no other. The family follows
from the base class: steelyard.weigh.Rule, or the draw and mix bases of steelyard_server.methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steelyard.registry import Registry, name_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "steelyard.methods"


class PluginError(ValueError):
    """An entry point that gives no usable method. The message names it, its package and what is wrong."""


def entry_points(name: str | None = None) -> list[EntryPoint]:
    """Those of the group, by name; with `name` only those that have it. Imports none of what they name."""
    # Reading what is installed takes milliseconds, and so does this import: only who asks for more than the built-in
    # methods pays for them.
    from importlib import metadata

    found = metadata.entry_points(group=GROUP)
    return sorted((one for one in found if name in (None, one.name)), key=lambda one: (one.name, one.value))


def load(entry: EntryPoint) -> type[Any]:
    """The class that an entry point names. PluginError: it cannot be imported, or is not a method of that name."""
    try:
        found = entry.load()
    except Exception as error:
        raise PluginError(f"{describe(entry)} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(found, type):
        raise PluginError(f"{describe(entry)}: expected a class, got {found!r}")
    if name_of(found) != entry.name:
        raise PluginError(
            f"{describe(entry)}: expected its method to be called {entry.name!r} too, got {name_of(found)!r}"
        )
    return found


def register(entry: EntryPoint, *families: Registry[Any]) -> None:
    """Registers what an entry point names with the one of `families` that it belongs to.

    PluginError: as of load, of none of them, or refused by its registry.
    """
    method = load(entry)
    for family in families:
        if issubclass(method, family.base):
            try:
                return family.register(method)
            except ValueError as error:
                raise PluginError(f"{describe(entry)}: {error}") from error
    bases = ", ".join(f"{family.base.__module__}.{family.base.__name__}" for family in families)
    raise PluginError(f"{describe(entry)}: expected a subclass of {bases}; got {method!r}")


def describe(entry: EntryPoint) -> str:
    """An entry point for messages."""
    package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
    return f"entry point {entry.name!r} ({entry.value}){package}"
