"""What is under test: one method with one configuration."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard import weigh
from steelyard.registry import Registry, name_of

_WHOLE = ("group", "domain", "cluster", "bucket", "label", "class")
"""A column whose name holds one of these words has whole numbers."""


class ContractError(AssertionError):
    """A method breaks its contract; the message names the clause and what came."""


@dataclass(frozen=True)
class Subject:
    """`config` is the method's part of a policy, "method" included; `registry` is where its family is kept."""

    registry: Registry[Any]
    method: type[Any]
    config: Mapping[str, Any]
    given: Mapping[str, npt.ArrayLike] = field(default_factory=dict)

    @property
    def family(self) -> str:
        return self.registry.family

    @property
    def name(self) -> str:
        return str(self.config["method"])

    @contextlib.contextmanager
    def registered(self) -> Iterator[None]:
        """Policies know the method's name meanwhile."""
        if self.registry.get(self.name) is self.method:
            yield
            return
        self.registry.register(self.method)
        try:
            yield
        finally:
            self.registry.forget(self.name)

    def column(self, name: str, size: int) -> npt.NDArray[np.float32]:
        """Values of a static column: those that were given, over and over, or made-up ones above 0."""
        if name in self.given:
            return np.resize(np.asarray(self.given[name], np.float32), size)
        rows = np.arange(size)
        if any(word in name for word in _WHOLE):
            return (rows % 3).astype(np.float32)
        return ((rows * 37 % 101 + 1) / 101).astype(np.float32)

    def signal(self, name: str, ids: npt.NDArray[Any], step: int = 0) -> npt.NDArray[np.float32]:
        """What a made-up trainer reports of `ids` at a step; different for each id."""
        ids = np.asarray(ids, np.int64)
        if name in ("correct", "correctness"):
            return ((ids * 7 + step) % 3 > 0).astype(np.float32)
        return (0.25 + (ids * 29 % 97 + step % 5) / 24).astype(np.float32)


def subject_of(
    method: Mapping[str, Any] | type[Any], family: str | None, columns: Mapping[str, npt.ArrayLike]
) -> Subject:
    """The subject that a configuration or a class means. ValueError: neither gives a method of a known family."""
    if isinstance(method, type):
        registry = _registry_of(method)
        return Subject(
            registry, method, {"method": name_of(method), **getattr(method, "example", {})}, columns
        )
    name = method.get("method")
    found = [registry for registry in _registries(family) if name in registry]
    if len(found) != 1:
        told = " and ".join(registry.family for registry in found) or "no family"
        raise ValueError(
            f"expected the name of one method, or a family= to find it in; {name!r} is of {told}"
        )
    return Subject(found[0], found[0][str(name)], dict(method), columns)


def _registry_of(method: type[Any]) -> Registry[Any]:
    for registry in _registries(None):
        if issubclass(method, registry.base):
            return registry
    raise ValueError(f"expected a draw, mix or weigh method, got {method!r}")


def _registries(family: str | None) -> Iterator[Registry[Any]]:
    """Weigh rules first: they are known where the server's packages are not."""
    if family in (None, "weigh"):
        yield weigh.METHODS
    for name in ("draw", "mix"):
        if family in (None, name):
            with contextlib.suppress(ModuleNotFoundError):
                yield importlib.import_module(f"steelyard_server.policies.{name}").METHODS
