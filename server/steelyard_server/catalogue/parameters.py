"""The parameters of a method: the fields of its model or dataclass, with the text below each."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED: Final = _Required()
"""Stands where a parameter has no default."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """`type` is for people to read; `default` a JSON value, or REQUIRED."""

    name: str
    type: str
    default: Any
    doc: str


def parameters_of(method: type[Any]) -> tuple[Parameter, ...]:
    """All but the field that holds the name itself, in the order of their definition."""
    docs = _docs_of(method)
    fields = _model_fields(method) if issubclass(method, BaseModel) else _dataclass_fields(method)
    return tuple(
        Parameter(name, text, default, docs.get(name, "")) for name, (text, default) in fields.items()
    )


def _model_fields(method: type[BaseModel]) -> dict[str, tuple[str, Any]]:
    return {
        name: (
            _type_text(field.annotation) + _range_text(field.metadata),
            REQUIRED if field.is_required() else _plain(field.get_default(call_default_factory=True)),
        )
        for name, field in method.model_fields.items()
        if name != "method"
    }


def _dataclass_fields(method: type[Any]) -> dict[str, tuple[str, Any]]:
    hints = get_type_hints(method, include_extras=True)
    return {
        field.name: (_type_text(hints[field.name]), _default_of(field))
        for field in dataclasses.fields(method)
    }


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return _plain(field.default)
    return REQUIRED if field.default_factory is dataclasses.MISSING else _plain(field.default_factory())


def _plain(value: Any) -> Any:
    """A default as JSON can say it."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


# ---- types, for people ----


def _type_text(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type_text(arguments[0]) + _range_text(arguments[1:])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(map(_type_text, arguments))
    if kind is type(None):
        return "null"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " | ".join(str(member.value) for member in kind)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"object of {_type_text(arguments[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if origin is tuple and Ellipsis not in arguments:
            return f"[{', '.join(map(_type_text, arguments))}]"
        return f"list of {_type_text(arguments[0])}"
    return str(getattr(kind, "__name__", kind))


def _range_text(metadata: Sequence[Any]) -> str:
    """What pydantic's Field says of a number: " 0 to 64", " >= 0", " < 1"."""
    limits: dict[str, Any] = {}
    for item in metadata:
        for one in item.metadata if isinstance(item, FieldInfo) else [item]:
            limits.update(
                {word: getattr(one, word) for word in ("ge", "gt", "le", "lt") if hasattr(one, word)}
            )
    if set(limits) == {"ge", "le"}:
        return f" {limits['ge']:g} to {limits['le']:g}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    shown = [f"{sign} {limits[word]:g}" for word, sign in signs.items() if word in limits]
    return f" {' and '.join(shown)}" if shown else ""


# ---- the text below a field ----


def _docs_of(method: type[Any]) -> dict[str, str]:
    docs: dict[str, str] = {}
    for base in reversed(method.__mro__):
        if not base.__module__.startswith(("builtins", "abc", "typing", "pydantic")):
            docs.update(_docs_in(base))
    return docs


def _docs_in(method: type[Any]) -> dict[str, str]:
    """Field → the string that stands below it. Empty where there is no source to read."""
    try:
        source = textwrap.dedent(inspect.getsource(method))
    except (OSError, TypeError):
        return {}
    [body] = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    docs = {}
    for statement, below in itertools.pairwise(body):
        match statement, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docs[name] = " ".join(text.split())
    return docs
