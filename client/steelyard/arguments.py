"""Checks of arguments that more than one call shares. Each raises InvalidArgument: what was expected and what came."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard import wire
from steelyard.errors import InvalidArgument
from steelyard.v1 import arrays_pb2

_FLOAT32 = np.dtype("=f4")


def whole(name: str, value: Any, *, at_least: int = 0, below: int = 2**64) -> int:
    """An integer in the range; numpy's integers are integers, bools and floats are not."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, (bool, np.bool_)) or not at_least <= number < below:
        raise InvalidArgument(f"{name}: expected an integer from {at_least} to {below - 1}, got {value!r}")
    return number


def flag(name: str, value: Any, *, default: bool) -> bool:
    """A bool, `default` where it is None. InvalidArgument."""
    if value is not None and not isinstance(value, (bool, np.bool_)):
        raise InvalidArgument(f"{name}: expected True, False or None, got {value!r}")
    return default if value is None else bool(value)


def seconds(name: str, value: float) -> float:
    """A positive, finite number of seconds. InvalidArgument."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value <= 0
    ):
        raise InvalidArgument(f"{name}: expected a positive number of seconds, got {value!r}")
    return float(value)


def id_array(ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Ids as int64[n]; whether they exist is the server's to say."""
    values = np.asarray(ids)
    if values.size == 0:
        return np.zeros(0, np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InvalidArgument(
            f"ids: expected integers in one dimension, got {values.dtype} of shape {values.shape}"
        )
    if int(values.min()) < 0 or int(values.max()) >= 2**63:
        raise InvalidArgument(f"ids: expected numbers from 0 on, got {values.min()} to {values.max()}")
    return values.astype(np.int64, copy=False)


def pack_ids(ids: npt.NDArray[np.int64]) -> arrays_pb2.Array:
    """Checked ids as a message, in the smallest type that holds them."""
    return wire.pack_ids(ids, int(ids.max()) + 1 if len(ids) else 0)


def float_array(name: str, values: Any) -> npt.NDArray[np.float32]:
    """Numbers as float32[n]: a sequence, or an array of any library that numpy reads, on any device of torch's.

    Shares memory with the values where they are float32 in host memory already.
    """
    if (
        type(values) is np.ndarray
        and values.dtype == _FLOAT32
        and values.ndim == 1
        and values.flags.c_contiguous
    ):
        return values
    if hasattr(values, "detach"):  # a torch tensor: out of the graph, off the device
        values = values.detach().float().cpu()
    try:
        array = np.asarray(values)
        if array.ndim != 1 or array.dtype.kind not in "fiub":
            raise InvalidArgument(
                f"{name}: expected numbers in one dimension, got {array.dtype} of shape {array.shape}"
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, as it would be on the device
            return np.ascontiguousarray(array, np.float32)
    except (TypeError, RuntimeError) as error:
        raise InvalidArgument(
            f"{name}: expected numbers in one dimension, got {type(values).__name__}: {error}"
        ) from error
