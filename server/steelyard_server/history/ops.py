"""What can be asked of the store in one transaction."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

MAX_KEY_BYTES = 511
"""LMDB's limit."""

U64_MAX = 2**64 - 1


class Table(enum.StrEnum):
    """The named databases of the environment. Values are on disk: never renamed."""

    META = "meta"
    DATASETS = "datasets"
    RUNS = "runs"
    JOURNAL = "journal"
    STEPS = "steps"
    CHECKPOINTS = "checkpoints"
    CHUNKS = "chunks"
    HISTORY = "history"
    HOLES = "holes"
    SEGMENTS = "segments"
    PIECES = "pieces"
    """The store's own (pieces.py): of no op."""


@dataclass(frozen=True, slots=True)
class Put:
    """Stores `value` under `key`, replacing what was there."""

    table: Table
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Removes `key`; no error where it is not there."""

    table: Table
    key: bytes


@dataclass(frozen=True, slots=True)
class DeleteRange:
    """Removes every key in [start, stop). Costs the writer about a microsecond a key."""

    table: Table
    start: bytes
    stop: bytes


@dataclass(frozen=True, slots=True)
class Fence:
    """Makes the whole write fail with StoreFailed once the store has left `generation`.

    What was computed from memory that a failed commit made doubtful must not reach the disk after the store
    has recovered: a journal record would follow one that was never written.
    """

    generation: int


Op = Put | Delete | DeleteRange | Fence


def check(op: Op) -> None:
    """ValueError for an op that LMDB would refuse: it would fail all the others of its transaction."""
    if isinstance(op, Fence):
        return
    if op.table is Table.PIECES:
        raise ValueError(f"table {op.table} is the store's own")
    keys = (op.start, op.stop) if isinstance(op, DeleteRange) else (op.key,)
    for key in keys:
        if not 1 <= len(key) <= MAX_KEY_BYTES:
            raise ValueError(f"a key of table {op.table} must have 1..{MAX_KEY_BYTES} bytes, not {len(key)}")
    if isinstance(op, Put) and len(op.value) >= 2**31:
        raise ValueError(f"a value of table {op.table} must have fewer than 2^31 bytes, not {len(op.value)}")


def weight(op: Op) -> int:
    """Bytes that the op holds in memory, roughly."""
    if isinstance(op, Put):
        return len(op.key) + len(op.value) + 128
    return 128


def u64(*numbers: int) -> bytes:
    """Big-endian, so that byte order is number order. ValueError for a number outside 0..2^64-1."""
    try:
        return struct.pack(f">{len(numbers)}Q", *numbers)
    except struct.error:
        raise ValueError(f"expected numbers in 0..2^64-1, got {numbers}") from None


def prefix_range(prefix: bytes) -> tuple[bytes, bytes]:
    """[start, stop) of the keys that begin with `prefix`, which must not be all 0xff."""
    stop = bytearray(prefix)
    while stop and stop[-1] == 0xFF:
        stop.pop()
    if not stop:
        raise ValueError(f"no key follows the prefix {prefix!r}")
    stop[-1] += 1
    return prefix, bytes(stop)
