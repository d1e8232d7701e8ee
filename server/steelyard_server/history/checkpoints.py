"""Checkpoints: the state of a run after all journal records below some seq.

    CHECKPOINTS  run_id u64 BE | seq u64 BE | step u64 BE → the row: step, chain, meta, small arrays whole
    CHUNKS       the big arrays, each chunk in the version of the checkpoint that last changed it

The row comes last, with whatever of the rest is not written yet: chunks without a row are of no checkpoint,
and the next one replaces or removes them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from steelyard_server.disk.v1 import checkpoints_pb2

from .arrays import DTYPES, AnyArray, element_type, from_json, pack, to_json, unpack
from .chunks import CHUNK, Chunks, chunk_count
from .errors import RecordDamaged
from .ops import Delete, Op, Table, prefix_range, u64
from .sealed import seal, unseal
from .store import Store

Ops = list[Op]
Arrays = dict[str, AnyArray]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The row of one checkpoint. `columns`: name → (dtype, length); their content is loaded by
    Checkpoints.load.
    """

    seq: int
    step: int
    chain: bytes
    meta: dict[str, Any]
    blobs: dict[str, AnyArray]
    columns: dict[str, tuple[np.dtype[Any], int]]


class Checkpoints:
    """The checkpoints of one run. Has no state of its own; what it reads is durable."""

    def __init__(self, store: Store, run_id: int) -> None:
        self._store = store
        self._run_id = run_id
        self._chunks = Chunks(store, run_id, f"run {run_id}")

    def owed(
        self,
        columns: Mapping[str, AnyArray],
        dirty: Mapping[str, npt.NDArray[np.bool_] | None],
    ) -> dict[str, Sequence[int]]:
        """Which chunks of each column a checkpoint must write, by name, each in order. Of the columns, only the lengths
        and types are looked at.

        `dirty` flags, for each column, the chunks (of CHUNK elements) that changed since the newest durable checkpoint;
        None or no entry: all. A column that is new, or whose length or dtype changed, needs no flags for that. Clear
        the flags, and save again, only when the row is durable.
        """
        before = self.newest()
        return {
            name: _changed(name, columns[name], dirty.get(name), before.columns.get(name) if before else None)
            for name in sorted(columns)
        }

    def chunk(self, seq: int, name: str, index: int, values: AnyArray) -> Op:
        """The op that stores a chunk of a checkpoint; it counts once the row is there."""
        return self._chunks.put(name, index, seq, values)

    def row(
        self,
        seq: int,
        step: int,
        chain: bytes,
        meta: Mapping[str, Any],
        blobs: Mapping[str, AnyArray],
        columns: Mapping[str, AnyArray],
    ) -> Op:
        """The op that makes a checkpoint count, when all its chunks are written: of the state after all records below
        `seq` (journal.next_seq, with journal.chain). Of `columns` as of `owed`. Write it behind journal.fence()."""
        row = checkpoints_pb2.Checkpoint(seq=seq, step=step, chain=chain, meta_json=to_json(meta))
        for name in sorted(blobs):
            row.blobs.add(name=name, array=pack(blobs[name]))
        for name in sorted(columns):
            row.columns.add(name=name, element_type=element_type(columns[name]), length=columns[name].size)
        return seal(Table.CHECKPOINTS, self._key(seq, step), row.SerializeToString(deterministic=True))

    def list(self) -> list[tuple[int, int]]:
        """(seq, step) of every checkpoint, oldest first."""
        keys = self._store.keys(Table.CHECKPOINTS, *prefix_range(u64(self._run_id)))
        return [(int.from_bytes(key[8:16], "big"), int.from_bytes(key[16:24], "big")) for key in keys]

    def first_from(self, seq: int) -> tuple[int, int] | None:
        """(seq, step) of the oldest checkpoint at or above record `seq`."""
        stop = prefix_range(u64(self._run_id))[1]
        keys = self._store.keys(Table.CHECKPOINTS, u64(self._run_id, seq), stop, limit=1)
        return (int.from_bytes(keys[0][8:16], "big"), int.from_bytes(keys[0][16:24], "big")) if keys else None

    def stored_bytes(self) -> int:
        """Keys and values of all checkpoints; a chunk that several read counts once. Reads every one."""
        span = prefix_range(u64(self._run_id))
        return self._store.size_of(Table.CHECKPOINTS, *span) + self._store.size_of(Table.CHUNKS, *span)

    def newest_seq(self, at_or_before_seq: int | None = None) -> int:
        """The seq of `newest`, without reading it; 0 where there is none."""
        start, stop = prefix_range(u64(self._run_id))
        if at_or_before_seq is not None:
            stop = u64(self._run_id, at_or_before_seq) + b"\xff" * 9
        keys = self._store.keys(Table.CHECKPOINTS, start, stop, reverse=True, limit=1)
        return int.from_bytes(keys[0][8:16], "big") if keys else 0

    def newest(self, at_or_before_seq: int | None = None) -> Checkpoint | None:
        """The newest one, or the newest whose seq is not above the given one. RecordDamaged: its row is."""
        start, stop = prefix_range(u64(self._run_id))
        if at_or_before_seq is not None:
            stop = u64(self._run_id, at_or_before_seq) + b"\xff" * 9
        row = self._store.last_of(Table.CHECKPOINTS, [(start, stop)])[0]
        return None if row is None else self._parse(*row)

    def load(self, checkpoint: Checkpoint) -> tuple[dict[str, Any], Arrays, Arrays]:
        """(meta, blobs, columns), all checked; columns are writable copies. RecordDamaged names the chunk."""
        columns = {
            name: self._chunks.read(name, length, dtype, checkpoint.seq)
            for name, (dtype, length) in checkpoint.columns.items()
        }
        return dict(checkpoint.meta), dict(checkpoint.blobs), columns

    def drop_after(self, seq: int) -> Ops:
        """Ops that delete the checkpoints above `seq` and what only they read. For a journal that is cut at
        `seq`.
        """
        rows: Ops = [Delete(Table.CHECKPOINTS, self._key(*at)) for at in self.list() if at[0] > seq]
        return [*rows, *self._chunks.versions.drop_after(seq)]

    def prune_rows(self, keep: Collection[int]) -> tuple[Ops, Sequence[int]]:
        """Ops that delete every checkpoint whose seq is not in `keep`, and what `prune_chunks` is to be told once they
        are durable. The newest is always kept: one that is being saved shares its chunks. ValueError: a seq has no
        checkpoint.
        """
        have = self.list()
        unknown = set(keep) - {seq for seq, _ in have}
        if unknown:
            raise ValueError(f"run {self._run_id} has no checkpoint at {sorted(unknown)}; it has {have}")
        if not have:
            return [], []
        kept = {*keep, have[-1][0]}
        rows: Ops = [Delete(Table.CHECKPOINTS, self._key(*at)) for at in have if at[0] not in kept]
        return rows, sorted(kept)

    def prune_chunks(self, kept: Sequence[int]) -> Ops:
        """Ops that delete the chunks that none of the checkpoints at `kept` reads. Reads every key of the chunks."""
        return self._chunks.versions.prune(kept) if kept else []

    def _key(self, seq: int, step: int) -> bytes:
        return u64(self._run_id, seq, step)

    def _parse(self, key: bytes, value: bytes) -> Checkpoint:
        seq, step = int.from_bytes(key[8:16], "big"), int.from_bytes(key[16:24], "big")
        place = f"run {self._run_id}, checkpoint at journal record {seq} (step {step})"
        content = unseal(place, key, value)
        try:
            row = checkpoints_pb2.Checkpoint.FromString(content)
            return Checkpoint(
                seq=row.seq,
                step=row.step,
                chain=row.chain,
                meta=from_json(row.meta_json),
                blobs={blob.name: unpack(blob.array) for blob in row.blobs},
                columns={column.name: (DTYPES[column.element_type], column.length) for column in row.columns},
            )
        except (DecodeError, ValueError, KeyError) as error:
            raise RecordDamaged(place, str(error)) from error


def _changed(
    name: str,
    values: AnyArray,
    flags: npt.NDArray[np.bool_] | None,
    before: tuple[np.dtype[Any], int] | None,
) -> Sequence[int]:
    """The chunks of the caller's flags and, where the length changed, everything from the first chunk that is of
    another size on; all, where nothing can be shared.
    """
    count = chunk_count(values.size)
    if flags is not None and flags.shape != (count,) and (before is None or before[1] == values.size):
        raise ValueError(f"expected {count} dirty flags for column {name!r}, got shape {flags.shape}")
    if flags is None or before is None or before[0] != values.dtype.newbyteorder("<"):
        return range(count)
    if before[1] != values.size:
        grown = np.zeros(count, np.bool_)
        grown[: flags.size] = flags[:count]
        grown[min(before[1], values.size) // CHUNK :] = True
        flags = grown
    found: list[int] = np.flatnonzero(flags).tolist()
    return found
