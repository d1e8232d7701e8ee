"""Policies as plain Python values and as google.protobuf.Struct.

A Struct holds what JSON holds, with every number a double. So integers must be exact as doubles, NaN and infinities
are refused, and a number that comes back whole comes back as an int (2 == 2.0, so nothing that compares notices).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf import struct_pb2

from steelyard.errors import InvalidArgument


def to_struct(values: Mapping[str, Any], name: str) -> struct_pb2.Struct:
    """The mapping as a Struct. InvalidArgument names the place (under `name`), what was expected and what came."""
    if not isinstance(values, Mapping):
        raise InvalidArgument(f'{name}: expected a mapping such as {{"method": ...}}, got {values!r}')
    struct = struct_pb2.Struct()
    struct.update(_plain(values, name))
    return struct


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """The Struct as plain Python values."""
    return {key: _python(value) for key, value in struct.fields.items()}


def _plain(value: Any, place: str) -> Any:
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidArgument(f"{place}: expected keys that are strings, got {key!r}")
        return {key: _plain(one, f"{place}.{key}") for key, one in value.items()}
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0):
        return [_plain(one, f"{place}[{at}]") for at, one in enumerate(value)]
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        return _number(value, place)
    raise InvalidArgument(
        f"{place}: expected a number, string, bool, None, list or mapping, got {type(value).__name__} {value!r}"
    )


def _number(value: int | float, place: str) -> float:
    if not math.isfinite(value):
        raise InvalidArgument(f"{place}: expected a finite number, got {value}")
    if abs(value) > 2**53 and int(float(value)) != int(value):
        raise InvalidArgument(f"{place}: expected an integer that a double holds exactly, got {value}")
    return float(value)


def _python(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return from_struct(value.struct_value)
    if kind == "list_value":
        return [_python(one) for one in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    if kind in (None, "null_value"):
        return None
    return getattr(value, kind)
