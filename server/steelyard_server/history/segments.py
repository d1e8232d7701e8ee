"""Losses of examples as they were reported, in segments: what is not in the rows of ring.py yet.

    key     = run_id u64 BE | seq u64 BE                                  a mark
            | run_id u64 BE | seq u64 BE | part u16 BE                    the head of a segment
            | run_id u64 BE | seq u64 BE | part u16 BE | block u32 BE     a segment's losses of BLOCK ids
    mark    = 1: the rows have all up to seq; 0: there may be newer rows, of a merge that is under way, was broken off
              or was undone, u8
    head    = losses u64 | bytes u64
    content = 1: all of one step, u8 | losses n u32 | steps u32[1 or n] | ids u16[n] | losses f32[n], little-endian

Ids count from the first of their block, ascending; the losses of one id are in the order in which they were folded. A
segment is written once, in the order of its keys, so a loss costs the disk little more than its ten bytes however far
apart the ids are.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard_server.core.events import Float32s, Ids

from .errors import RecordDamaged
from .ops import Delete, Op, Table, prefix_range, u64
from .ranges import ROWS_A_RANGE, deletes
from .room import PAGE
from .sealed import seal, unseal
from .store import Store

BLOCK = 4096
"""Ids of a row."""
ALL_BLOCKS = (1 << 32) - 1
"""More than any dataset has."""
BYTES_A_LOSS = 64
"""At worst: a row for itself, its head, its key, and the page that it shares."""

SEGMENT_LOSSES = 1 << 20
"""To write one takes some 60 bytes of memory for each."""
_LOSS_BYTES = 4 + 2 + 4
_ROW_BYTES = 22 + 5 + 5 + 16
"""Key, seal, what a row begins with, and what LMDB keeps of it."""
_HEAD = struct.Struct("<QQ")
_CONTENT = struct.Struct("<BI")
_END_OF_PART = b"\xff" * 5

UInt32s = npt.NDArray[np.uint32]
Entries = Sequence[tuple[int, npt.NDArray[np.integer[Any]], Float32s]]
"""(step, ids, losses), in fold order."""


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """Losses by id, ascending, those of one id in fold order: int64[n], uint32[n], float32[n]."""

    ids: Ids
    steps: UInt32s
    losses: Float32s

    def last(self, count: int) -> Losses:
        """Of each id only the last `count`."""
        n = self.ids.size
        ends = np.append(np.flatnonzero(self.ids[1:] != self.ids[:-1]) + 1, n) if n else np.zeros(0, np.int64)
        lengths = np.diff(ends, prepend=0)
        if not n or int(lengths.max()) <= count:
            return self
        keep = np.repeat(ends, lengths) - np.arange(n) <= count
        return Losses(self.ids[keep], self.steps[keep], self.losses[keep])


@dataclass(frozen=True, slots=True)
class Segment:
    seq: int
    part: int
    losses: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Listing:
    """All that there is of a run: seqs up to which the rows have all, those begun, and the segments in order."""

    merged: Sequence[int]
    begun: Sequence[int]
    segments: Sequence[Segment]

    def base(self, at_seq: int) -> int | None:
        """Up to which seq a reader at `at_seq` takes the rows; None where all that it knows is in them."""
        return max((seq for seq in self.merged if seq <= at_seq), default=None)

    def read_at(self, at_seq: int) -> list[Segment]:
        """What that reader takes beside the rows, in order."""
        base = self.base(at_seq)
        return [one for one in self.segments if base is not None and base < one.seq <= at_seq]


def stored_at_most(losses: int, examples: int) -> int:
    """Bytes that segments of so many losses of so many examples take in the store."""
    segments = losses // SEGMENT_LOSSES + 1
    rows = min(losses, segments * -(-examples // BLOCK))
    written = losses * _LOSS_BYTES + (rows + segments) * _ROW_BYTES
    # A row has pages of its own, the last of them not full, and is listed by its pieces; or it shares one that may be
    # half empty.
    return min(2 * written, written + written // 64 + rows * PAGE, losses * BYTES_A_LOSS)


def sorted_losses(ids: Ids, steps: UInt32s, losses: Float32s) -> Losses:
    """Of losses in fold order."""
    if not np.all(ids[1:] >= ids[:-1]):
        order = np.argsort(ids, kind="stable")
        ids, steps, losses = ids[order], steps[order], losses[order]
    return Losses(ids, steps, losses)


class Segments:
    """The segments of one run. Has no state of its own; what it reads is durable."""

    def __init__(self, store: Store, run_id: int) -> None:
        self._store = store
        self._run_id = run_id

    def listing(self) -> Listing:
        """Reads a row for each mark and segment."""
        merged, begun, segments = list[int](), list[int](), list[Segment]()
        start, stop = prefix_range(u64(self._run_id))
        while rows := self._store.scan(Table.SEGMENTS, start, stop, limit=1):
            key, value = rows[0]
            start = key + b"\0" if len(key) == 16 else key[:18] + _END_OF_PART
            seq, part = int.from_bytes(key[8:16], "big"), int.from_bytes(key[16:18], "big")
            if len(key) == 16:
                (merged if unseal(self._place(seq), key, value) == b"\1" else begun).append(seq)
            elif len(key) == 18:
                segments.append(Segment(seq, part, *_HEAD.unpack(unseal(self._place(seq), key, value))))
        return Listing(merged, begun, segments)

    def mark(self, seq: int, *, done: bool) -> Op:
        return seal(Table.SEGMENTS, u64(self._run_id, seq), b"\1" if done else b"\0")

    def write(self, seq: int, part: int, losses: Losses) -> Iterator[Op]:
        """Ops that store one segment."""
        size = 0
        blocks = losses.ids // BLOCK
        edges = [0, *(np.flatnonzero(blocks[1:] != blocks[:-1]) + 1).tolist(), losses.ids.size]
        local = (losses.ids % BLOCK).astype("<u2")
        one_step = bool((losses.steps == losses.steps[0]).all())
        prefix = self._part(seq, part)
        for start, stop in itertools.pairwise(edges):
            content = b"".join(
                (
                    _CONTENT.pack(one_step, stop - start),
                    losses.steps[start : start + 1 if one_step else stop].astype("<u4").tobytes(),
                    local[start:stop].tobytes(),
                    losses.losses[start:stop].astype("<f4").tobytes(),
                )
            )
            op = seal(Table.SEGMENTS, prefix + int(blocks[start]).to_bytes(4, "big"), content)
            size += len(op.value)
            yield op
        yield seal(Table.SEGMENTS, prefix, _HEAD.pack(losses.ids.size, size))

    def read(self, segment: Segment, first: int, stop: int) -> Iterator[Losses]:
        """Its losses of the blocks first..stop-1, a block at a time. RecordDamaged names the ids."""
        prefix = self._part(segment.seq, segment.part)
        span = prefix + first.to_bytes(4, "big"), prefix + stop.to_bytes(4, "big")
        for key, value in self._store.scan(Table.SEGMENTS, *span):
            yield self._decode(segment.seq, key, value)

    def refuse(self, segment: Segment, found: int) -> None:
        """RecordDamaged: it has not all of its losses."""
        raise RecordDamaged(self._place(segment.seq), f"expected {segment.losses} losses, found {found}")

    def read_blocks(self, segment: Segment, blocks: Sequence[int]) -> Iterator[Losses]:
        """Its losses of these blocks, as far as it has any."""
        prefix = self._part(segment.seq, segment.part)
        keys = [prefix + block.to_bytes(4, "big") for block in blocks]
        for key, value in zip(keys, self._store.get_many(Table.SEGMENTS, keys), strict=True):
            if value is not None:
                yield self._decode(segment.seq, key, value)

    def copy(self, segment: Segment, run_id: int, seq: int, part: int) -> Iterator[Op]:
        """Ops that give another run the same segment, in another place."""
        start, stop = prefix_range(self._part(segment.seq, segment.part))
        other = Segments(self._store, run_id)._part(seq, part)
        while rows := self._store.scan(Table.SEGMENTS, start, stop, limit=ROWS_A_RANGE):
            for key, value in rows:
                yield seal(Table.SEGMENTS, other + key[18:], unseal(self._place(segment.seq), key, value))
            start = rows[-1][0] + b"\0"

    def drop(self, segment: Segment) -> Iterator[Op]:
        """Ops that delete a segment: its head last, so that what is left of it is found again."""
        prefix = self._part(segment.seq, segment.part)
        yield from deletes(self._store, Table.SEGMENTS, prefix + b"\0", prefix_range(prefix)[1])
        yield self.behead(segment)

    def behead(self, segment: Segment) -> Op:
        """The op by which nobody finds the segment any more: what is left of it only takes room."""
        return Delete(Table.SEGMENTS, self._part(segment.seq, segment.part))

    def unmark(self, seq: int) -> Op:
        return Delete(Table.SEGMENTS, u64(self._run_id, seq))

    def drop_after(self, seq: int) -> Iterator[Op]:
        """Ops that delete what there is of segments above `seq`, found or not, and no mark."""
        start, stop = u64(self._run_id, seq + 1), prefix_range(u64(self._run_id))[1]
        while keys := self._store.keys(Table.SEGMENTS, start, stop, limit=1):
            at = int.from_bytes(keys[0][8:16], "big")
            start = u64(self._run_id, at + 1)
            yield from deletes(self._store, Table.SEGMENTS, u64(self._run_id, at) + b"\0", start)

    def stored_bytes(self) -> int:
        """Keys and values. Reads every one."""
        return self._store.size_of(Table.SEGMENTS, *prefix_range(u64(self._run_id)))

    def _part(self, seq: int, part: int) -> bytes:
        return u64(self._run_id, seq) + part.to_bytes(2, "big")

    def _decode(self, seq: int, key: bytes, value: bytes) -> Losses:
        block = int.from_bytes(key[18:22], "big")
        place = f"run {self._run_id}, losses of ids {block * BLOCK}..{(block + 1) * BLOCK - 1}, version {seq}"
        content = unseal(place, key, value)
        try:
            one_step, n = _CONTENT.unpack_from(content)
            at = _CONTENT.size + 4 * (1 if one_step else n)
            steps = np.frombuffer(content, "<u4", 1 if one_step else n, _CONTENT.size)
            ids = np.frombuffer(content, "<u2", n, at)
            losses = np.frombuffer(content, "<f4", n, at + 2 * n)
        except (struct.error, ValueError) as error:
            raise RecordDamaged(place, str(error)) from error
        if len(content) != at + 6 * n:
            raise RecordDamaged(place, f"expected {at + 6 * n} bytes, found {len(content)}")
        return Losses(
            ids.astype(np.int64) + block * BLOCK,
            np.broadcast_to(steps, (n,)).astype(np.uint32),
            losses.astype(np.float32),
        )

    def _place(self, seq: int) -> str:
        return f"run {self._run_id}, the losses saved at journal record {seq}"


def grouped(entries: Entries) -> Iterator[Losses]:
    """Losses as segments of some million: what each is made of is all that is held. ValueError: a negative id, a
    step of 2^32 or more.
    """
    group: list[tuple[int, npt.NDArray[np.integer[Any]], Float32s]] = []
    size = 0
    for place, (step, ids, losses) in enumerate(entries):
        if not 0 <= step < 2**32:
            raise ValueError(f"the history holds steps 0..2^32-1, not {step}")
        group.append((step, ids, losses))
        size += ids.size
        if size >= SEGMENT_LOSSES or place == len(entries) - 1:
            steps = np.repeat(np.array([one[0] for one in group], np.uint32), [one[1].size for one in group])
            all_ids, all_losses = (
                np.concatenate([one[1] for one in group]).astype(np.int64),
                np.concatenate([one[2] for one in group]),
            )
            if all_ids.size and int(all_ids.min()) < 0:
                raise ValueError(f"expected ids of 0 or more, got {int(all_ids.min())}")
            group, size = [], 0
            yield sorted_losses(all_ids, steps, all_losses)
