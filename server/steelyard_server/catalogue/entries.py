"""One entry a method: its name, its parameters, where it comes from, what it does with what was never reported."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from steelyard_server.catalogue.parameters import REQUIRED, Parameter, parameters_of
from steelyard_server.plugins import FAMILIES


@dataclass(frozen=True, slots=True)
class Entry:
    """`origin` is "built in", or the module of a user's method. Texts are empty where a method states none."""

    family: str
    name: str
    summary: str
    paper: str
    where: str
    never_reported: str
    parameters: tuple[Parameter, ...]
    origin: str
    method: type[Any]

    def as_json(self) -> dict[str, Any]:
        """The entry as JSON values. A parameter without a default is required."""
        return {
            "family": self.family,
            "name": self.name,
            "summary": self.summary,
            "source": {"paper": self.paper, "where": self.where},
            "never_reported": self.never_reported,
            "origin": self.origin,
            "parameters": [_parameter_as_json(parameter) for parameter in self.parameters],
        }


def entries(family: str | None = None) -> list[Entry]:
    """All methods that are registered, or those of one family: by family, then by name. LookupError: no such family."""
    if family not in (None, *families()):
        raise LookupError(f"expected one of the families {', '.join(families())}; got {family!r}")
    return [
        _entry(registry.family, name, method, built_in=registry.is_built_in(name))
        for registry in FAMILIES
        if family in (None, registry.family)
        for name, method in sorted(registry.items())
    ]


def find(name: str, family: str | None = None) -> list[Entry]:
    """The methods of that name: one of a family at most. LookupError: there is none, with the nearest that is."""
    known = entries(family)
    if found := [entry for entry in known if entry.name == name]:
        return found
    near = difflib.get_close_matches(name, (entry.name for entry in known), n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    kind = f"{family} method" if family else "method"
    raise LookupError(f"expected the name of a {kind}, got {name!r}{meant}")


def families() -> tuple[str, ...]:
    return tuple(registry.family for registry in FAMILIES)


def _entry(family: str, name: str, method: type[Any], *, built_in: bool) -> Entry:
    source = getattr(method, "source", None)
    return Entry(
        family=family,
        name=name,
        summary=_first_paragraph(inspect.getdoc(method) or ""),
        paper="" if source is None else source.paper,
        where="" if source is None else source.where,
        never_reported=getattr(method, "never_reported", ""),
        parameters=parameters_of(method),
        origin="built in" if built_in else method.__module__,
        method=method,
    )


def _first_paragraph(text: str) -> str:
    return _one_line(text.split("\n\n", 1)[0].splitlines())


def _one_line(lines: Iterable[str]) -> str:
    return " ".join(line.strip() for line in lines)


def _parameter_as_json(parameter: Parameter) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": parameter.name, "type": parameter.type}
    if parameter.default is not REQUIRED:
        shown["default"] = parameter.default
    return {**shown, "doc": parameter.doc}
