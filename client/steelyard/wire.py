"""Arrays as they cross the wire: little-endian bytes whose element type and count are stated and checked."""

from __future__ import annotations

import functools
import hashlib
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard.v1 import arrays_pb2

_DTYPES: dict[arrays_pb2.DType, np.dtype[Any]] = {
    arrays_pb2.DTYPE_UINT8: np.dtype("u1"),
    arrays_pb2.DTYPE_UINT16: np.dtype("<u2"),
    arrays_pb2.DTYPE_UINT32: np.dtype("<u4"),
    arrays_pb2.DTYPE_UINT64: np.dtype("<u8"),
    arrays_pb2.DTYPE_INT64: np.dtype("<i8"),
    arrays_pb2.DTYPE_FLOAT32: np.dtype("<f4"),
    arrays_pb2.DTYPE_FLOAT64: np.dtype("<f8"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_UNSIGNED = tuple(np.dtype(name) for name in ("u1", "<u2", "<u4", "<u8"))
_ID_DTYPES = (*_UNSIGNED, np.dtype("<i8"))
_ALWAYS_IDS = frozenset(_UNSIGNED[:3])
"""Types of which every value is from 0 to 2**63 - 1."""


def pack(array: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> arrays_pb2.Array:
    """A one-dimensional array as a message, cast to `dtype` first where one is given.

    ValueError: not one dimension, an element type that the wire does not carry, or a cast that would change
    an integer. A float cast rounds.
    """
    values = np.asarray(array)
    if values.ndim != 1:
        raise ValueError(f"expected an array of one dimension, got shape {values.shape}")
    target = _wire_dtype(values.dtype if dtype is None else np.dtype(dtype))
    if values.dtype != target:
        values = _cast(values, target)
    return arrays_pb2.Array(dtype=_CODES[target], count=len(values), data=values.tobytes())


def unpack(
    message: arrays_pb2.Array, *expected: npt.DTypeLike, count: int | None = None, name: str = "array"
) -> npt.NDArray[Any]:
    """The array in a message: read-only, sharing the message's bytes, of one of the `expected` element types.

    Any type will do when none is expected. `count` is the number of elements that must be there. ValueError
    names the field `name`, what was expected and what came.
    """
    dtype = _DTYPES.get(message.dtype)
    allowed = _wire_dtypes(expected)
    if dtype is None or dtype not in allowed:
        came = f"dtype number {message.dtype}" if dtype is None else dtype.name
        raise ValueError(f"{name}: expected {' or '.join(one.name for one in allowed)}, got {came}")
    data, stated = message.data, message.count  # each look copies
    if len(data) != stated * dtype.itemsize:
        raise ValueError(
            f"{name}: expected {stated * dtype.itemsize} bytes for {stated} of {dtype.name}, got {len(data)}"
        )
    if count is not None and stated != count:
        raise ValueError(f"{name}: expected {count} values, got {stated}")
    return np.frombuffer(data, dtype)


@functools.lru_cache(64)
def smallest_uint(size: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds every id below `size`. ValueError: size is not in 0..2**63."""
    if not 0 <= size <= 2**63:
        raise ValueError(f"expected a number of ids from 0 to 2**63, got {size}")
    return next(dtype for dtype in _UNSIGNED if size <= 256**dtype.itemsize)


def pack_ids(ids: npt.ArrayLike, size: int) -> arrays_pb2.Array:
    """Ids of a dataset of `size` examples as the smallest type that holds all of its ids.

    ValueError: an id that is not in 0..size-1 (the message names its position), or not one dimension of
    integers.
    """
    values = np.asarray(ids)
    if values.size == 0:
        values = values.astype(np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(
            f"ids: expected integers in one dimension, got {values.dtype} of shape {values.shape}"
        )
    _check_range(values, size, "ids")
    return pack(values.astype(smallest_uint(size)))


def unpack_ids(
    message: arrays_pb2.Array, *, size: int | None = None, count: int | None = None, name: str = "ids"
) -> npt.NDArray[np.int64]:
    """The ids in a message, as a new int64 array. ValueError as for unpack, or an id not in 0..size-1."""
    values = unpack(message, *_ID_DTYPES, count=count, name=name)
    if size is not None or values.dtype not in _ALWAYS_IDS:
        _check_range(values, 2**63 if size is None else size, name)
    return values.astype(np.int64)


def batch_digest(step: int, ids: npt.ArrayLike) -> int:
    """What identifies a global batch: blake2b-64 of the step (u64) and its ids (i64), little-endian."""
    digest = hashlib.blake2b(struct.pack("<Q", step), digest_size=8)
    digest.update(np.ascontiguousarray(ids, dtype="<i8").data)
    return int.from_bytes(digest.digest(), "little")


@functools.cache
def _wire_dtypes(expected: tuple[Any, ...]) -> tuple[np.dtype[Any], ...]:
    """The element types that were asked for, every one where none was. A few tuples in all, so they are kept."""
    return tuple(_wire_dtype(np.dtype(one)) for one in expected) or tuple(_CODES)


@functools.cache
def _wire_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    little = dtype.newbyteorder("<")
    if little not in _CODES:
        raise ValueError(f"expected one of {', '.join(known.name for known in _CODES)}, got {little.name}")
    return little


def _cast(values: npt.NDArray[Any], target: np.dtype[Any]) -> npt.NDArray[Any]:
    if values.dtype.kind not in "biuf" or (values.dtype.kind == "f" and target.kind != "f"):
        raise ValueError(f"expected values that can be cast to {target.name}, got {values.dtype.name}")
    if target.kind in "iu" and values.size:
        limits = np.iinfo(target)
        low, high = int(values.min()), int(values.max())
        if low < limits.min or high > limits.max:
            raise ValueError(f"expected values that fit {target.name}, got values from {low} to {high}")
    return values.astype(target)


def _check_range(ids: npt.NDArray[Any], size: int, name: str) -> None:
    if ids.size == 0:
        return
    # Two reductions in the array's own type: cheaper than a comparison, and right for uint64 against int64.
    if int(ids.min()) >= 0 and int(ids.max()) < size:
        return
    position, value = next((at, int(one)) for at, one in enumerate(ids) if not 0 <= int(one) < size)
    raise ValueError(f"{name}: expected ids from 0 to {size - 1}, got {value} at position {position}")
