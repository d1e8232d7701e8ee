"""Values of more than a few pages, in pieces: or else the file grows for as long as they are replaced.

LMDB puts a value that fits no leaf into pages side by side. Where no free ones lie so, it takes new ones at the end of
the file, however many are free elsewhere; and whatever is smaller breaks up what lies side by side. A piece is as long
as what is written at every step anyway, so what one leaves another takes.

    in the place of the value    0xff | id u64 BE | bytes u32 LE
    table PIECES                 id u64 BE | number u32 BE → PIECE_BYTES of the value; of the last piece, the rest

A new id is one above the greatest there is. A value that begins with 0xff is put in pieces however short it is, so that
none is taken for what stands in the place of one. A value whose pieces are not all there reads as nothing: whoever
reads what may be long has a checksum in it, and can say what was lost.
"""

from __future__ import annotations

import struct

import lmdb

from .ops import u64
from .room import PIECE_BYTES

_MARK = b"\xff"
_HEAD = struct.Struct("<c8sI")


def put(
    txn: lmdb.Transaction[memoryview], table: lmdb._Database, pieces: lmdb._Database, key: bytes, value: bytes
) -> None:
    """Stores `value` in the place of what was there."""
    whole = len(value) <= PIECE_BYTES and value[:1] != _MARK
    stored = value if whole else _cut(txn, pieces, value)
    if not txn.put(key, stored, db=table, overwrite=False):
        _forget(txn, pieces, txn.get(key, db=table))
        txn.put(key, stored, db=table)


def delete(
    txn: lmdb.Transaction[memoryview], table: lmdb._Database, pieces: lmdb._Database, key: bytes
) -> None:
    _forget(txn, pieces, txn.get(key, db=table))
    txn.delete(key, db=table)


def delete_range(
    txn: lmdb.Transaction[memoryview],
    table: lmdb._Database,
    pieces: lmdb._Database,
    start: bytes,
    stop: bytes,
) -> None:
    with txn.cursor(db=table) as cursor:
        found = cursor.set_range(start)
        while found and bytes(cursor.key()) < stop:
            _forget(txn, pieces, cursor.value())
            found = cursor.delete() and bool(cursor.key())


def whole(txn: lmdb.Transaction[bytes], pieces: lmdb._Database | None, stored: bytes) -> bytes:
    """The value in whose place `stored` was read. `pieces` is None where an older program wrote it all."""
    head = _head(stored)
    if head is None or pieces is None:
        return stored
    number, size = head
    found = []
    with txn.cursor(db=pieces) as cursor:
        more = cursor.set_range(number)
        while more and cursor.key()[:8] == number:
            found.append(cursor.value())
            more = cursor.next()
    value = b"".join(found)
    return value if len(value) == size else b""


def length(stored: bytes) -> int:
    """Bytes of the value in whose place `stored` was read."""
    head = _head(stored)
    return len(stored) if head is None else head[1]


def count(stored: bytes) -> int:
    """In how many pieces that value is."""
    head = _head(stored)
    return 0 if head is None else -(-head[1] // PIECE_BYTES)


def _cut(txn: lmdb.Transaction[memoryview], pieces: lmdb._Database, value: bytes) -> bytes:
    rest = memoryview(value)
    with txn.cursor(db=pieces) as cursor:
        number = u64(int.from_bytes(cursor.key()[:8], "big") + 1 if cursor.last() else 0)
        for place, start in enumerate(range(0, len(value), PIECE_BYTES)):
            cursor.put(number + place.to_bytes(4, "big"), rest[start : start + PIECE_BYTES], append=True)
    return _HEAD.pack(_MARK, number, len(value))


def _forget(
    txn: lmdb.Transaction[memoryview], pieces: lmdb._Database, stored: memoryview | bytes | None
) -> None:
    """Deletes the pieces of the value in whose place there is `stored`."""
    head = None if stored is None else _head(stored)
    if head is None:
        return
    with txn.cursor(db=pieces) as cursor:
        found = cursor.set_range(head[0])
        while found and cursor.key()[:8] == head[0]:
            found = cursor.delete() and bool(cursor.key())


def _head(stored: bytes | memoryview) -> tuple[bytes, int] | None:
    """(id, bytes of the value); None where `stored` is the value itself."""
    if len(stored) != _HEAD.size or stored[0] != _MARK[0]:
        return None
    _, number, size = _HEAD.unpack(stored)
    return number, size
