"""The methods of one family by their names: the built-in ones, and those that users add."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from steelyard.source import Source

T = TypeVar("T")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Registry(Mapping[str, type[T]], Generic[T]):
    """Classes by name. What is built in stays what it is; a user's class is added under a name of its own."""

    def __init__(self, family: str, base: type[Any], built_in: Iterable[type[T]]) -> None:
        self.family = family
        self.base = base
        self._built_in: dict[str, type[T]] = {name_of(method): method for method in built_in}
        self._methods: dict[str, type[T]] = dict(self._built_in)

    def register(self, method: Any) -> None:
        """Adds a user's class; the same one again changes nothing.

        ValueError: it is not a method of this family, lacks what every method states, or has a name that is taken.
        """
        if (fault := self._fault(method)) is not None:
            raise ValueError(f"{self.family}: {fault}")
        self._methods[name_of(method)] = method

    def forget(self, name: str) -> None:
        """Takes a user's class away. Built-in ones stay."""
        if name not in self._built_in:
            self._methods.pop(name, None)

    def is_built_in(self, name: str) -> bool:
        return name in self._built_in

    def __getitem__(self, name: str) -> type[T]:
        return self._methods[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)

    def _fault(self, method: Any) -> str | None:
        if not isinstance(method, type) or not issubclass(method, self.base):
            return f"expected a subclass of {self.base.__name__}, got {method!r}"
        if missing := sorted(getattr(method, "__abstractmethods__", ())):
            return f"{method.__name__} does not define {', '.join(missing)}"
        name = name_of(method)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            return (
                f"expected {method.__name__}.method to be a name of small letters, digits and _, got {name!r}"
            )
        if self._methods.get(name, method) is not method:
            owner = "built in" if self.is_built_in(name) else f"taken by {self._methods[name].__module__}"
            return f"the name {name!r} of {method.__name__} is {owner}"
        if not _has_checked_fields(method):
            return f"expected {method.__name__} to be a frozen dataclass, whose fields are its parameters"
        if not isinstance(getattr(method, "source", None), Source):
            return f"expected {method.__name__}.source to be a steelyard.source.Source, which says where it comes from"
        if not isinstance(getattr(method, "never_reported", None), str):
            return (
                f"expected {method.__name__}.never_reported to say what examples that were never reported get"
            )
        return None


def name_of(method: Any) -> Any:
    """What a policy calls a method: the class attribute, or the default of the field, `method`."""
    fields = getattr(method, "model_fields", None)
    return getattr(method, "method", None) if fields is None else fields["method"].default


def _has_checked_fields(method: type[Any]) -> bool:
    """Whether it is a model, or a frozen dataclass by a decorator of its own: one inherited knows no new fields."""
    if hasattr(method, "model_fields"):
        return True
    parameters = vars(method).get("__dataclass_params__")
    return dataclasses.is_dataclass(method) and parameters is not None and bool(parameters.frozen)
