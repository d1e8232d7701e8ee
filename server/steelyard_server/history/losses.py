"""The last K losses of every example: rows (ring.py), and beside them segments of what came since (segments.py).

A checkpoint writes segments. When those that are not in the rows have become big against them, they are merged into the
rows: a row that is rewritten costs a page, so that is put off until it pays. A reader at a checkpoint takes the rows as
of the last merge at or before it, and the segments from there on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from steelyard_server.core.events import Float32s, Ids

from .ops import U64_MAX, Op
from .ring import PAGE_BYTES, History
from .segments import (
    ALL_BLOCKS,
    BLOCK,
    Entries,
    Losses,
    Segment,
    Segments,
    grouped,
    sorted_losses,
    stored_at_most,
)
from .store import Store

MERGE_COST = 4
"""Segments are merged once that writes no more than this many times what they take themselves."""

_BLOCKS_AT_ONCE = 16

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]


class LossHistory:
    """The per-example history of one run. Has no state of its own; what it reads is durable."""

    def __init__(self, store: Store, run_id: int, size: int) -> None:
        """`size` is K, 0..255; with 0 nothing is kept. It is fixed for the life of the run."""
        self.size = size
        self._store = store
        self._rows = History(store, run_id, size)
        self._segments = Segments(store, run_id)

    # ---- forward ----

    def append(self, seq: int, entries: Entries, since: int, *, beside: bool = False) -> Iterator[Op]:
        """Ops that add losses as of the checkpoint at `seq`, to what the one at `since` (0: none) has; they count once
        that of `seq` is there. Ops that an earlier try left above `since` are undone; but with `beside`, what is there
        for `seq` stays. Holds a segment in memory at a time.
        """
        if not self.size or not entries:
            return
        listing = self._segments.listing()
        if not (beside or since == seq):
            yield from self._segments.drop_after(since)
        if listing.base(since) is None:
            yield self._segments.mark(since, done=True)
        part = sum(one.seq == seq for one in listing.segments) if beside or since == seq else 0
        for losses in grouped(entries):
            yield from self._segments.write(seq, part, losses.last(self.size))
            part += 1

    def bytes_of(self, entries: Entries, examples: int) -> int:
        """What `append` takes in the store at most, in a run of so many examples."""
        return stored_at_most(sum(ids.size for _, ids, _ in entries), examples) if self.size else 0

    def merge_is_due(self, seq: int, examples: int) -> bool:
        """Whether `merge` at the checkpoint at `seq` of a run of so many examples is worth what it writes."""
        segments = self._segments.listing().read_at(seq)
        return MERGE_COST * sum(one.bytes for one in segments) >= self._bytes_of_rows(segments, examples) > 0

    def bytes_of_merge(self, seq: int, examples: int) -> int:
        """What `merge` takes in the store, roughly: the rows before stay until they are pruned."""
        return self._bytes_of_rows(self._segments.listing().read_at(seq), examples)

    def merge(self, seq: int, examples: int) -> Iterator[Op]:
        """Ops that bring the segments up to the checkpoint at `seq` into the rows; they may be committed one by one, in
        order, and those of a merge that was broken off count for nothing. Holds the losses of 65 536 examples and
        their rows at a time, several times over: some 4 MB of memory for each loss that is kept of an example.
        """
        yield from self.sweep_rows()
        listing = self._segments.listing()
        base, segments = listing.base(seq), listing.read_at(seq)
        yield self._segments.mark(seq, done=False)
        for first in range(0, -(-examples // BLOCK), _BLOCKS_AT_ONCE):
            parts = [
                losses
                for segment in segments
                for losses in self._segments.read(segment, first, first + _BLOCKS_AT_ONCE)
            ]
            if parts:
                ids, steps, losses = _joined(parts)
                yield from self._rows.merge(seq, ids, steps, losses, since=base)
        yield self._segments.mark(seq, done=True)

    # ---- reading ----

    def read(self, ids: Ids, at_seq: int | None = None) -> tuple[Int64s, UInt64s, Float32s]:
        """(counts int64[n], steps uint64[sum], losses float32[sum]) of `ids` in the order asked, each oldest
        first.

        As of the checkpoint at `at_seq`, or the newest below. ValueError: a negative id. RecordDamaged names the ids.
        """
        at = U64_MAX if at_seq is None else at_seq
        listing = self._segments.listing()
        while True:
            found = self._read_at(ids, at_seq, listing.base(at), listing.read_at(at))
            before, listing = listing, self._segments.listing()
            # Beside a reader what it reads may be merged, and then removed: it has gone on to the next rows then.
            if listing.base(at) == before.base(at):
                return found

    def check(self) -> None:
        """Decodes every row and segment that there is. RecordDamaged at the first that is not as it was written."""
        if not self.size:
            return
        self._rows.check()
        for segment in self._segments.listing().segments:
            losses = sum(part.ids.size for part in self._segments.read(segment, 0, ALL_BLOCKS))
            if losses != segment.losses:
                self._segments.refuse(segment, losses)

    def _read_at(
        self, ids: Ids, at_seq: int | None, base: int | None, segments: Sequence[Segment]
    ) -> tuple[Int64s, UInt64s, Float32s]:
        counts, steps, losses = self._rows.read(ids, at_seq if base is None else base)
        if not segments or not ids.size:
            return counts, steps, losses
        asked, place = np.unique(ids, return_inverse=True)
        first = np.zeros(asked.size, np.int64)
        first[place] = np.arange(ids.size)
        parts = [_of(asked, first, counts, steps, losses)]
        blocks: list[int] = np.unique(asked // BLOCK).tolist()
        for segment in segments:
            parts += [_among(asked, found) for found in self._segments.read_blocks(segment, blocks)]
        joined = sorted_losses(*_joined(parts)).last(self.size)
        counts = np.bincount(joined.ids, minlength=asked.size)
        at_place = _ranges((np.cumsum(counts) - counts)[place], counts[place])
        return counts[place], joined.steps[at_place].astype(np.uint64), joined.losses[at_place]

    def _bytes_of_rows(self, segments: Sequence[Segment], examples: int) -> int:
        """Of the rows that these segments change, at most."""
        rows = min(sum(one.losses for one in segments), -(-examples // max(self._rows.ids_per_chunk, 1)))
        return rows * PAGE_BYTES

    def stored_bytes(self) -> int:
        """Keys and values, older versions included. Reads every one."""
        return self._rows.stored_bytes() + self._segments.stored_bytes()

    # ---- back ----

    def copy_to(self, run_id: int, at_seq: int, seq: int) -> Iterator[Op]:
        """Ops that give another run of the same size what this one kept at the checkpoint at `at_seq`, for its first
        checkpoint, at `seq`: a fork.
        """
        if not self.size:
            return
        listing = self._segments.listing()
        base = listing.base(at_seq)
        other = Segments(self._store, run_id)
        yield from self._rows.copy_to(run_id, at_seq if base is None else base, 0)
        yield other.mark(0, done=True)
        for part, segment in enumerate(listing.read_at(at_seq)):
            yield from self._segments.copy(segment, run_id, seq, part)

    def drop_after(self, seq: int) -> list[Op]:
        """Ops that forget what came after the checkpoint at `seq`: an op for each segment and merge. What they leave
        nobody reads; `sweep` deletes it, or else the next `append` and `merge`."""
        if not self.size:
            return []
        listing = self._segments.listing()
        later = [at for at in (*listing.merged, *listing.begun) if at > seq]
        ops = [self._segments.unmark(at) for at in later]
        ops += [self._segments.behead(one) for one in listing.segments if one.seq > seq]
        older_program = listing.base(seq) is None and not self._rows.is_empty()
        if older_program:
            ops.append(self._segments.mark(seq, done=True))
        if later or older_program:
            # As of a merge that was begun: there are rows that are of none.
            ops.append(self._segments.mark(seq + 1, done=False))
        return ops

    def sweep(self, seq: int) -> Iterator[Op]:
        """Ops that delete what is of no checkpoint, one by one. `seq` is that of the newest."""
        if self.size:
            yield from self._segments.drop_after(seq)
            yield from self.sweep_rows()

    def sweep_rows(self) -> Iterator[Op]:
        """Ops that delete what a merge wrote that was broken off or undone, one by one. Reads every key of the rows
        where there was one."""
        listing = self._segments.listing()
        newest = max(listing.merged, default=None)
        begun = [] if newest is None else [seq for seq in listing.begun if seq > newest]
        if newest is not None and begun:
            yield from self._rows.drop_after(newest)
            # Last, so that one that is broken off is gone through again.
            yield from (self._segments.unmark(seq) for seq in begun)

    def prune(self, keep: Sequence[int]) -> Iterator[Op]:
        """Ops that delete what no reader at a checkpoint of `keep`, which are all that there are, takes. Reads every
        key of the rows where a merge has become needless.
        """
        if not self.size or not keep:
            return
        listing = self._segments.listing()
        bases = {seq: listing.base(seq) for seq in keep}
        needed = {one for seq in keep for one in listing.read_at(seq)}
        for segment in listing.segments:
            if segment not in needed and segment.seq <= max(keep):
                yield from self._segments.drop(segment)
        newest = max(listing.merged, default=0)
        gone = [seq for seq in listing.merged if seq not in bases.values() and seq < newest]
        gone += [seq for seq in listing.begun if seq < newest]
        if gone or not listing.merged:
            yield from self._rows.prune(
                sorted({seq if base is None else base for seq, base in bases.items()})
            )
        # Last, so that one that is broken off is gone through again.
        yield from (self._segments.unmark(seq) for seq in gone)


def _joined(parts: Sequence[Losses]) -> tuple[Ids, npt.NDArray[np.uint32], Float32s]:
    return (
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.steps for part in parts]),
        np.concatenate([part.losses for part in parts]),
    )


def _of(asked: Ids, first: Int64s, counts: Int64s, steps: UInt64s, losses: Float32s) -> Losses:
    """What was read of ids, of which asked[i] stood at first[i]: with places in `asked` for ids."""
    at = _ranges((np.cumsum(counts) - counts)[first], counts[first])
    return Losses(np.repeat(np.arange(asked.size), counts[first]), steps[at].astype(np.uint32), losses[at])


def _among(asked: Ids, found: Losses) -> Losses:
    """Those of ids that stand in `asked` (ascending), with places there for ids."""
    low, high = np.searchsorted(asked, (found.ids[0], found.ids[-1] + 1))
    wanted = asked[low:high]
    begin, end = np.searchsorted(found.ids, wanted), np.searchsorted(found.ids, wanted, side="right")
    at = _ranges(begin, end - begin)
    return Losses(np.repeat(np.arange(low, high), end - begin), found.steps[at], found.losses[at])


def _ranges(starts: Int64s, counts: Int64s) -> Int64s:
    """starts[0], starts[0] + 1, ... counts[0] of them; then those of starts[1]."""
    ends = np.cumsum(counts)
    at: Int64s = np.arange(int(ends[-1]) if ends.size else 0) + np.repeat(starts - (ends - counts), counts)
    return at
