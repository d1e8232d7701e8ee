"""Arrays ⇄ the disk's Array message and plain JSON values ⇄ canonical JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard_server.core.events import Ids
from steelyard_server.disk.v1 import arrays_pb2

AnyArray = npt.NDArray[Any]

DTYPES: dict[arrays_pb2.ElementType, np.dtype[Any]] = {
    arrays_pb2.ELEMENT_TYPE_UINT8: np.dtype("<u1"),
    arrays_pb2.ELEMENT_TYPE_UINT16: np.dtype("<u2"),
    arrays_pb2.ELEMENT_TYPE_UINT32: np.dtype("<u4"),
    arrays_pb2.ELEMENT_TYPE_UINT64: np.dtype("<u8"),
    arrays_pb2.ELEMENT_TYPE_INT8: np.dtype("<i1"),
    arrays_pb2.ELEMENT_TYPE_INT16: np.dtype("<i2"),
    arrays_pb2.ELEMENT_TYPE_INT32: np.dtype("<i4"),
    arrays_pb2.ELEMENT_TYPE_INT64: np.dtype("<i8"),
    arrays_pb2.ELEMENT_TYPE_FLOAT32: np.dtype("<f4"),
    arrays_pb2.ELEMENT_TYPE_FLOAT64: np.dtype("<f8"),
    arrays_pb2.ELEMENT_TYPE_BOOL: np.dtype("?"),
}
_CODES: dict[np.dtype[Any], arrays_pb2.ElementType] = {dtype: code for code, dtype in DTYPES.items()}
_ID_TYPES = tuple((np.dtype(name), np.iinfo(name).max) for name in ("u1", "u2", "u4", "u8"))
_GREATEST_ID = np.iinfo(np.int64).max


def element_type(array: AnyArray) -> arrays_pb2.ElementType:
    """ValueError for a dtype that the disk does not know."""
    code = _CODES.get(array.dtype)
    if code is not None:
        return code
    try:
        return _CODES[array.dtype.newbyteorder("<")]
    except KeyError:
        known = ", ".join(sorted(str(dtype) for dtype in _CODES))
        raise ValueError(f"expected an array of one of {known}; got {array.dtype}") from None


def pack(array: AnyArray) -> arrays_pb2.Array:
    """Any shape; stored in C order."""
    shape = array.shape if array.ndim != 1 else ()
    if array.ndim == 0:
        raise ValueError("expected an array of at least one dimension, got a scalar")
    return arrays_pb2.Array(element_type=element_type(array), data=to_bytes(array), shape=shape)


def unpack(message: arrays_pb2.Array) -> AnyArray:
    """Read-only, in native byte order. ValueError where bytes, type and shape do not agree."""
    dtype = DTYPES.get(message.element_type)
    if dtype is None:
        raise ValueError(f"expected a known element type, found {message.element_type}")
    array = from_bytes(message.data, dtype)
    return array.reshape(tuple(message.shape)) if message.shape else array


def to_bytes(array: AnyArray) -> bytes:
    """Little-endian, C order."""
    if array.dtype in _CODES:  # their own order, or none
        return array.tobytes()
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def from_bytes(data: bytes | memoryview, dtype: np.dtype[Any]) -> AnyArray:
    """Read-only, in native byte order. ValueError when the bytes are no whole number of elements."""
    array = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
    array.flags.writeable = False
    return array


def pack_ids(ids: Ids) -> arrays_pb2.Array:
    """In the smallest unsigned type that holds them. ValueError for a negative id."""
    return pack(narrowed(ids))


def narrowed(ids: Ids) -> AnyArray:
    """The ids in the smallest unsigned type that holds them. ValueError for a negative id."""
    if ids.dtype == np.int64 and ids.size:
        # Read without its sign a negative id is greater than any other: one look finds both bounds.
        top = int(np.maximum.reduce(ids.view(np.uint64)))
        if top <= _GREATEST_ID:
            return ids.astype(next(dtype for dtype, greatest in _ID_TYPES if top <= greatest))
    if ids.size and int(ids.min()) < 0:
        raise ValueError(f"expected ids of 0 or more, got {int(ids.min())}")
    top = int(ids.max()) if ids.size else 0
    return ids.astype(next(dtype for dtype, greatest in _ID_TYPES if top <= greatest))


def fill(message: arrays_pb2.Array, array: AnyArray) -> None:
    """As `pack`, of one dimension, into a message that is there: cheaper than to copy one in."""
    message.element_type = element_type(array)
    message.data = to_bytes(array)


def unpack_ids(message: arrays_pb2.Array) -> Ids:
    return unpack(message).astype(np.int64)


def to_json(value: Mapping[str, Any]) -> str:
    """Sorted keys, no spaces: equal values give equal bytes. ValueError for NaN and infinities, which are not
    JSON.
    """
    return _ENCODER.encode(value) if value else "{}"


def from_json(text: str) -> dict[str, Any]:
    """ValueError when it is not a JSON object."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"expected plain JSON values, got {type(value).__name__}")


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
