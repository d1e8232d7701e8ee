"""The tail: writes that durability `interval` has acknowledged and LMDB has not committed yet.

A plain file in the operating system's hands: it survives the death of the process, not that of the machine.
Each record is one write, so a torn record at the end was never acknowledged. A record carries the epoch of
the commit that will take it in; records of an epoch that LMDB has committed are dead, so that emptying the
file is only housekeeping and no power cut can bring back what a later transaction deleted. A record carries its
number within the epoch as well: of what a power cut leaves, in whatever order the disk wrote it, what is read is a
beginning without gaps.

    record  = length u32 | crc32 of payload u32 | payload           all little-endian
    payload = epoch u64 | number u64 | count u32 | count * (table u8 | key length u16 | value length u32 | key | value)
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from .ops import Put, Table

_FRAME = struct.Struct("<II")
_HEAD = struct.Struct("<QQI")
_ITEM = struct.Struct("<BHI")
_CODES = {
    Table.META: 0,
    Table.DATASETS: 1,
    Table.RUNS: 2,
    Table.JOURNAL: 3,
    Table.STEPS: 4,
    Table.CHECKPOINTS: 5,
    Table.CHUNKS: 6,
    Table.HISTORY: 7,
    Table.HOLES: 8,
    Table.SEGMENTS: 9,
    Table.PIECES: 10,
}
_TABLES = {code: table for table, code in _CODES.items()}

log = logging.getLogger(__name__)


class Tail:
    """The tail file of one directory. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.size = os.fstat(self._descriptor).st_size
        self.spoilt = self.size > 0
        """Whether something may lie on the disk, until `clear`, that must not be of the epoch that is written next."""
        self._epoch, self._number = 0, 0  # of the record that comes next

    def append(self, epoch: int, writes: Sequence[Sequence[Put]]) -> None:
        """Hands the writes to the operating system, in order. OSError: none of them is in the file, which is spoilt."""
        if epoch != self._epoch:
            self._epoch, self._number = epoch, 0
        data = b"".join(_record(epoch, self._number + place, puts) for place, puts in enumerate(writes))
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._descriptor, memoryview(data)[done:], self.size + done)
        except OSError:
            self.spoilt = True
            os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(data)
        self._number += len(writes)

    def read(self, epoch: int) -> list[Put]:
        """The ops of `epoch`, in order, up to the first record that is torn, damaged or missing. Nothing may be
        appended to the same epoch afterwards: what lies behind that record would come back."""
        data = os.pread(self._descriptor, self.size, 0)
        puts: list[Put] = []
        place = wanted = 0
        while place < len(data):
            payload = _payload(data, place)
            if payload is None:
                log.warning("%s: %d bytes from byte %d on are no whole record; dropped",
                            self._path, len(data) - place, place)  # fmt: skip
                break
            of, number, _ = _HEAD.unpack_from(payload)
            if of == epoch:
                if number != wanted:
                    log.warning("%s: record %d comes where %d was expected; dropped, and all behind it",
                                self._path, number, wanted)  # fmt: skip
                    break
                puts.extend(_puts(payload))
                wanted += 1
            place += _FRAME.size + len(payload)
        return puts

    def clear(self) -> None:
        """Empties the file; what it held must be committed."""
        os.ftruncate(self._descriptor, 0)
        self.size, self.spoilt = 0, False

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def described(path: Path) -> tuple[int, int, int]:
    """(whole records, their bytes, bytes behind them that are no whole record) of a tail file, which is not changed."""
    data = path.read_bytes() if path.exists() else b""
    records = place = 0
    while place < len(data) and (payload := _payload(data, place)) is not None:
        records, place = records + 1, place + _FRAME.size + len(payload)
    return records, place, len(data) - place


def _record(epoch: int, number: int, puts: Sequence[Put]) -> bytes:
    parts = [_HEAD.pack(epoch, number, len(puts))]
    for put in puts:
        parts += (_ITEM.pack(_CODES[put.table], len(put.key), len(put.value)), put.key, put.value)
    payload = b"".join(parts)
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def _payload(data: bytes, place: int) -> bytes | None:
    if len(data) - place < _FRAME.size:
        return None
    length, crc = _FRAME.unpack_from(data, place)
    payload = data[place + _FRAME.size : place + _FRAME.size + length]
    whole = len(payload) == length >= _HEAD.size and zlib.crc32(payload) == crc
    return payload if whole else None


def _puts(payload: bytes) -> list[Put]:
    _, _, count = _HEAD.unpack_from(payload)
    place = _HEAD.size
    puts = []
    for _ in range(count):
        code, key_length, value_length = _ITEM.unpack_from(payload, place)
        start = place + _ITEM.size
        middle, place = start + key_length, start + key_length + value_length
        puts.append(Put(_TABLES[code], payload[start:middle], payload[middle:place]))
    return puts
