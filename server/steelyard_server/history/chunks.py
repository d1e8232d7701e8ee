"""Long arrays in versioned chunks: a checkpoint writes the chunks that changed and shares the others.

key     = owner u64 BE | column name, UTF-8 | 0 | chunk index u32 BE | seq u64 BE      (table CHUNKS)
content = element type u8 | elements, little-endian
        | element type + 128 u8 | count u32 LE | the NaN that all elements are

So where no example has a value yet, a chunk takes a few bytes and not 256 KiB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import DTYPES, AnyArray, element_type, from_bytes, to_bytes
from .errors import RecordDamaged
from .ops import Op, Put, Table
from .room import PAGE
from .store import Store
from .versions import Versions

CHUNK = 1 << 16
"""Elements of a chunk."""

MAX_NAME_BYTES = 256

_BLANK = 128
_BLANK_BYTES = 2 * (8 + MAX_NAME_BYTES + 1 + 4 + 8 + 5 + 1 + 4 + 8 + 16)
"""Of a chunk that is, with its key, where the page that it shares may be half empty."""
_COUNT = struct.Struct("<I")


def chunk_count(length: int) -> int:
    """Chunks of an array of `length` elements."""
    return -(-length // CHUNK)


class Chunks:
    """The long arrays of one owner (a run or a dataset)."""

    def __init__(self, store: Store, owner: int, owner_name: str) -> None:
        """`owner_name` is for messages: "run 7"."""
        self._owner_name = owner_name
        self.versions = Versions(store, Table.CHUNKS, owner)

    def put(self, name: str, index: int, seq: int, values: AnyArray) -> Put:
        """Chunk `index` of the array `name` as of `seq`; at most CHUNK elements, one dimension."""
        if values.ndim != 1 or values.size > CHUNK:
            raise ValueError(f"expected one dimension of at most {CHUNK} elements, got shape {values.shape}")
        return self.versions.put(_row_name(name, index), seq, _encode(values))

    def write(
        self, name: str, values: AnyArray, seq: int, dirty: npt.NDArray[np.bool_] | None = None
    ) -> list[Op]:
        """The chunks whose flag in `dirty` (bool[chunk_count]) is set, or all. ValueError: wrong number of
        flags.
        """
        count = chunk_count(values.size)
        if dirty is not None and dirty.shape != (count,):
            raise ValueError(f"expected {count} dirty flags for column {name!r}, got shape {dirty.shape}")
        chosen = range(count) if dirty is None else np.flatnonzero(dirty).tolist()
        return [self.put(name, i, seq, values[i * CHUNK : (i + 1) * CHUNK]) for i in chosen]

    def chunk(self, name: str, index: int, at_seq: int | None = None) -> AnyArray | None:
        """Newest version at or below `at_seq`, read-only; None where there is none. RecordDamaged."""
        place = f"{self._owner_name}, column {name!r}, chunk {index}"
        content = self.versions.newest([_row_name(name, index)], [place], at_seq)[0]
        if content is None:
            return None
        return _decode(place, content)

    def read(self, name: str, length: int, dtype: np.dtype[Any], at_seq: int | None = None) -> AnyArray:
        """The whole array as of `at_seq`, writable. RecordDamaged, with the chunk, when it is not there as
        written.
        """
        out = np.empty(length, dtype)
        for index, part in self._parts(out):
            found = self.chunk(name, index, at_seq)
            if found is None or found.dtype != dtype or found.size != part.size:
                place = f"{self._owner_name}, column {name!r}, chunk {index}"
                if found is None:
                    raise RecordDamaged(place, "it is missing")
                expected = f"expected {part.size} of {np.dtype(dtype)}, found {found.size} of {found.dtype}"
                raise RecordDamaged(place, expected)
            part[:] = found
        return out

    def read_sparse(self, name: str, length: int, fill: AnyArray) -> AnyArray:
        """As read, of an array of which chunks were never written or end early: `fill` (one element) is
        there.
        """
        out = np.full(length, fill)
        for index, part in self._parts(out):
            found = self.chunk(name, index)
            if found is not None:
                part[: found.size] = found[: part.size]
        return out

    @staticmethod
    def _parts(out: AnyArray) -> Iterator[tuple[int, AnyArray]]:
        for index in range(chunk_count(out.size)):
            yield index, out[index * CHUNK : (index + 1) * CHUNK]


def row_prefix(name: str) -> bytes:
    """What the rows of an array begin with, after the owner. ValueError for a name that no row can have."""
    encoded = name.encode()
    if not 1 <= len(encoded) <= MAX_NAME_BYTES or b"\0" in encoded:
        raise ValueError(f"a column name must be 1..{MAX_NAME_BYTES} bytes without a zero byte, not {name!r}")
    return encoded + b"\0"


def _row_name(name: str, index: int) -> bytes:
    return row_prefix(name) + index.to_bytes(4, "big")


def _encode(values: AnyArray) -> bytes:
    kind = int(element_type(values))
    if is_blank(values):
        return bytes([kind | _BLANK]) + _COUNT.pack(values.size) + to_bytes(values[:1])
    return bytes([kind]) + to_bytes(values)


def stored_at_most(values: AnyArray) -> int:
    """Bytes that a chunk takes in the store."""
    return _BLANK_BYTES if is_blank(values) else values.nbytes + 2 * PAGE


def is_blank(values: AnyArray) -> bool:
    """Whether these are several elements, and all the same NaN, bit for bit: there are many."""
    if values.size < 2 or values.dtype.kind != "f" or values[0] == values[0]:
        return False
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    return bool((bits == bits[0]).all())


def _decode(place: str, content: bytes) -> AnyArray:
    """Read-only. RecordDamaged where it is nothing that _encode makes."""
    dtype = DTYPES.get(content[0] & ~_BLANK) if content else None  # type: ignore[call-overload]
    head = 1 + _COUNT.size if content and content[0] & _BLANK else 1
    if dtype is None or (len(content) - head) % dtype.itemsize or len(content) < head:
        raise RecordDamaged(place, "expected an element type and whole elements")
    values = from_bytes(memoryview(content)[head:], dtype)
    if head == 1:
        return values
    if values.size != 1:
        raise RecordDamaged(place, f"expected one element that stands for all, found {values.size}")
    return np.broadcast_to(values, (_COUNT.unpack_from(content, 1)[0],))
