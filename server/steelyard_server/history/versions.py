"""Rows that exist in several versions, so that an older checkpoint can still be loaded.

    key = owner u64 BE | name | seq u64 BE

A reader at journal position s takes of each name the newest version at or below s. Names of one table must be
prefix-free: no name begins with another one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise

from .ops import U64_MAX, Delete, Op, Put, Table, prefix_range, u64
from .sealed import seal, unseal
from .store import Store

PAGE_KEYS = 1 << 15
SEQ_BYTES = 8


class Versions:
    """The versioned rows of one owner (a run or a dataset) in one table. Has no state of its own."""

    def __init__(self, store: Store, table: Table, owner: int) -> None:
        self.store = store
        self._table = table
        self._owner = owner

    def put(self, name: bytes, seq: int, content: bytes) -> Put:
        """The op that stores a version, under a checksum."""
        return seal(self._table, self._key(name, seq), content)

    def newest(self, names: Sequence[bytes], places: Sequence[str], at_seq: int | None) -> list[bytes | None]:
        """Of each name the newest content at or below `at_seq` (None: of all). About 5 µs a name.

        RecordDamaged, with the name's own place, when it fails its checksum.
        """
        top = U64_MAX if at_seq is None else at_seq
        ranges = [(self._key(name, 0), self._key(name, top) + b"\0") for name in names]
        rows = self.store.last_of(self._table, ranges)
        return [
            None if row is None else unseal(f"{place}, version {_seq(row[0])}", *row)
            for row, place in zip(rows, places, strict=True)
        ]

    def names(self, at_seq: int | None = None) -> list[bytes]:
        """The names that have a version at or below `at_seq`, in order. Reads every key of the owner."""
        top = U64_MAX if at_seq is None else at_seq
        return [name for name, seqs in self._groups() if seqs[0] <= top]

    def all(self) -> Iterator[tuple[bytes, int]]:
        """(name, seq) of every version. Reads every key of the owner."""
        for name, seqs in self._groups():
            for seq in seqs:
                yield name, seq

    def stored_bytes(self) -> int:
        """Keys and values of every version. Reads each."""
        return self.store.size_of(self._table, *prefix_range(u64(self._owner)))

    def drop_after(self, seq: int) -> Iterator[Op]:
        """Ops that delete every version above `seq`, one by one. Reads every key of the owner."""
        for name, versions in self._groups():
            for version in versions:
                if version > seq:
                    yield Delete(self._table, self._key(name, version))

    def prune(self, keep: Sequence[int]) -> list[Op]:
        """Ops that delete the versions that no reader at a seq of `keep` takes. Newer ones than all of `keep`
        stay.

        Reads every key of the owner.
        """
        kept = sorted(keep)
        ops: list[Op] = []
        for name, versions in self._groups():
            for version, next_version in pairwise(versions):
                reader = bisect_left(kept, version)
                taken = reader == len(kept) or kept[reader] < next_version
                if not taken:
                    ops.append(Delete(self._table, self._key(name, version)))
        return ops

    def _groups(self) -> Iterator[tuple[bytes, list[int]]]:
        """(name, its versions, ascending)."""
        name, versions = b"", list[int]()
        start, stop = prefix_range(u64(self._owner))
        while keys := self.store.keys(self._table, start, stop, limit=PAGE_KEYS):
            for key in keys:
                if key[8:-SEQ_BYTES] != name:
                    if versions:
                        yield name, versions
                    name, versions = key[8:-SEQ_BYTES], []
                versions.append(_seq(key))
            start = keys[-1] + b"\0"
        if versions:
            yield name, versions

    def _key(self, name: bytes, seq: int) -> bytes:
        return u64(self._owner) + name + u64(seq)


def _seq(key: bytes) -> int:
    return int.from_bytes(key[-SEQ_BYTES:], "big")
