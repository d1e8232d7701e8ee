"""Values with a checksum, since LMDB has none.

    value = format version u8 | crc32 u32 LE of (key | rest) | rest

The key is under the checksum, so that a page which lands in the wrong place is found too.
"""

from __future__ import annotations

import struct
import zlib

from .errors import RecordDamaged
from .ops import Put, Table

VERSION = 1
_HEAD = struct.Struct("<BI")


def seal(table: Table, key: bytes, rest: bytes) -> Put:
    """The op that stores `rest` under `key`."""
    return Put(table, key, _HEAD.pack(VERSION, zlib.crc32(rest, zlib.crc32(key))) + rest)


def unseal(place: str, key: bytes, value: bytes) -> bytes:
    """What `seal` was given. RecordDamaged, naming `place`, when it is not that."""
    if len(value) < _HEAD.size:
        raise RecordDamaged(place, f"expected at least {_HEAD.size} bytes, found {len(value)}")
    version, crc = _HEAD.unpack_from(value)
    if version != VERSION:
        raise RecordDamaged(place, f"expected format version {VERSION}, found {version}")
    rest = value[_HEAD.size :]
    if zlib.crc32(rest, zlib.crc32(key)) != crc:
        raise RecordDamaged(place)
    return rest
