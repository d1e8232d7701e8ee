"""The journal of a run: its events, in order, each under a checksum and a hash chain.

    key     = run_id u64 BE | seq u64 BE
    value   = version u8 | crc32 u32 LE of everything after it | total u64 LE | chain 16 bytes | payload
    chain   = blake2b-128(chain of the record before | payload); sixteen zero bytes before the first record
    total   = bytes of all records of the run up to and with this one, so that sizes need no scan

The checksum finds a record that changed, the chain one that was lost, swapped or brought back. Table STEPS
leads from a step to the record of its BatchDrawn; steps are drawn in order, so it is sorted by record as
well.

Pruning takes the beginning, and of the middle what lies between pieces that are still wanted. Holes in the middle
are written down (holes.py), so a record that is missing anywhere else is damage.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from steelyard_server.core.events import BatchDrawn, Event

from .codec import decode, encode
from .errors import RecordDamaged, StoreFailed
from .holes import Span, outside, store_op, stored
from .ops import U64_MAX, DeleteRange, Fence, Op, Put, Table, prefix_range, u64
from .store import Store

VERSION = 1
NO_CHAIN = bytes(16)
"""The chain before the first record."""

PAGE_RECORDS = 128

_HEAD = struct.Struct("<BI")
_BODY = struct.Struct("<Q16s")
_FIRST_PAYLOAD_BYTE = _HEAD.size + _BODY.size


class Journal:
    """The journal of one run. For one thread at a time; only the run's own actor appends.

    `next_seq`, `chain` and `total` are what they will be once everything appended is durable; what is read
    (`read`, `seq_of_step`, `drawn`, `bytes_from`) is durable already.
    """

    def __init__(self, store: Store, run_id: int) -> None:
        """Reads the tail: see reload."""
        self._store = store
        self.run_id = run_id
        self.reload()

    def reload(self) -> None:
        """Takes next_seq, chain and holes from what is durable: at the start, and whenever store.generation
        moved.

        RecordDamaged when the last record or the list of holes is; StoreFailed while the store is not healthy.
        """
        generation = self._store.generation
        last = self._store.last_of(Table.JOURNAL, [prefix_range(u64(self.run_id))])[0]
        self.next_seq, self.chain, self.total = 0, NO_CHAIN, 0
        self.holes = stored(self._store, self.run_id)
        if last is not None:
            seq = self._seq_of(last[0])
            self.total, self.chain, _ = _open(self._place(seq), last[1])
            self.next_seq = seq + 1
        if self._store.generation != generation:
            raise StoreFailed(
                f"the store failed while run {self.run_id} was reading its journal; reload again"
            )
        self.generation = generation

    def append(self, events: Sequence[Event]) -> tuple[list[Op], int]:
        """Ops that store the events, and the seq of the first; next_seq and chain move at once.

        Pass the ops to store.write in the order of the calls. They are fenced: after a failed write none of
        the later ones is applied until the journal was reloaded. ValueError where an event cannot be stored;
        then nothing moved.
        """
        payloads = [encode(event) for event in events]
        first = self.next_seq
        return self._append(events, payloads), first

    def fence(self) -> Fence:
        """For writes that rest on what this journal says (a checkpoint): none of them after a failed write."""
        return Fence(self.generation)

    def read(
        self, start_seq: int, stop_seq: int | None = None, *, chain: bytes | None = None
    ) -> Iterator[tuple[int, Event]]:
        """Events start_seq..stop_seq-1, or to the last durable one; read in pages.

        `chain` is the chain before start_seq (a checkpoint has it); else it is taken from the record before,
        or, where that was pruned, from the first record itself. Without a stop_seq, a hole ends it as well.
        RecordDamaged at the first record that is damaged, does not continue the chain or is missing (also where
        it was pruned); those before it were good.
        """
        place, seen = start_seq, None
        before = self._chain_before(start_seq) if chain is None else chain
        hole = self._hole_from(start_seq)
        stop = min(U64_MAX if stop_seq is None else stop_seq, hole[0])
        while place < stop:
            limit = min(PAGE_RECORDS, stop - place)
            rows = self._store.scan(Table.JOURNAL, self._key(place), self._key(stop), limit=limit)
            for key, value in rows:
                found = self._seq_of(key)
                if found != place:
                    raise RecordDamaged(self._place(place, seen), f"it is missing; record {found} comes next")
                before, event = self._verified(place, value, before, seen)
                seen = getattr(event, "step", None) if isinstance(event, BatchDrawn) else seen
                yield place, event
                place += 1
            if len(rows) < limit:
                break
        if place < stop < U64_MAX:
            raise RecordDamaged(
                self._place(place, seen), f"it is missing; records up to {stop - 1} were expected"
            )
        if stop < (start_seq + 1 if stop_seq is None else stop_seq):
            raise RecordDamaged(
                self._place(place, seen), f"it was pruned, as all up to record {hole[1] - 1} were"
            )

    def chain_at(self, seq: int) -> bytes:
        """The chain before record `seq`. RecordDamaged when the record before it is damaged or not there."""
        return self._total_and_chain_before(seq, None)[1]

    def seq_of_step(self, step: int) -> int | None:
        """The record of the step's BatchDrawn; None where it is not drawn, not durable yet, or pruned."""
        value = self._store.get(Table.STEPS, u64(self.run_id, step))
        return None if value is None else int.from_bytes(value, "big")

    def drawn(self, step: int) -> BatchDrawn | None:
        """What was served at `step`, checked by its checksum. RecordDamaged when it is not that."""
        seq = self.seq_of_step(step)
        if seq is None:
            return None
        place = f"{self._place(seq)} (step {step})"
        value = self._store.get(Table.JOURNAL, self._key(seq))
        if value is None:
            raise RecordDamaged(place, "it is missing, though the step is in the index")
        event = _event(place, _open(place, value)[2])
        if not isinstance(event, BatchDrawn) or event.step != step:
            raise RecordDamaged(place, f"expected the batch of step {step}, found {type(event).__name__}")
        return event

    def first_seq(self) -> int:
        """The oldest record from which on all are kept; next_seq where there is none. Older ones lie in pieces."""
        return self.holes[-1][1] if self.holes else self.lowest_seq()

    def lowest_seq(self) -> int:
        """The oldest record that is kept; next_seq where there is none."""
        rows = self._store.keys(Table.JOURNAL, *prefix_range(u64(self.run_id)), limit=1)
        return self._seq_of(rows[0]) if rows else self.next_seq

    def first_step(self) -> int | None:
        """The oldest step from which on every batch is kept."""
        row = self._index_row(self._first_step_from(self.first_seq()))
        return None if row is None else row[0]

    def next_step(self) -> int:
        """One above the last step that is drawn and durable; 0 where none is kept."""
        return self._index_bounds()[1]

    def piece_end(self, seq: int) -> int:
        """The first record above `seq` that is pruned, else next_seq."""
        return min(self._hole_from(seq)[0], self.next_seq)

    def keeps(self, seq: int) -> bool:
        """Whether record `seq` is one that must be there: neither pruned, nor to come."""
        return self.lowest_seq() <= seq < self.piece_end(seq)

    def bytes_from(self, seq: int) -> int:
        """Bytes of the records from `seq` on, values only, as far as they are kept. Reads two records a piece."""
        starts = [max(seq, self.lowest_seq()), *(stop for _, stop in self.holes if stop > seq)]
        return sum(self.bytes_between(start, self.piece_end(start)) for start in starts)

    def bytes_between(self, start: int, stop: int) -> int:
        """Bytes of the records start..stop-1, which must all be kept; 0 where there is none. Reads two records."""
        if stop <= start:
            return 0
        return self._total_before(stop) - self._total_before(start)

    def cut(self, seq: int, events: Sequence[Event], *, chain: bytes | None = None) -> list[Op]:
        """Ops that delete the records from `seq` on and append `events` in their place: one transaction.

        next_seq and chain move at once; should the write fail, reload. Everything appended before must be
        durable. `chain` is needed only where record seq-1 was pruned. ValueError: seq is above next_seq.
        """
        if not 0 <= seq <= self.next_seq:
            raise ValueError(
                f"run {self.run_id} has records up to {self.next_seq - 1}; it cannot be cut at {seq}"
            )
        payloads = [encode(event) for event in events]
        kept, before = self._total_and_chain_before(seq, chain)
        end = prefix_range(u64(self.run_id))[1]
        ops: list[Op] = [
            DeleteRange(Table.JOURNAL, self._key(seq), end),
            DeleteRange(Table.STEPS, u64(self.run_id, self._first_step_from(seq)), end),
            *self._take_holes([hole for hole in self.holes if hole[1] <= seq]),
        ]
        self.next_seq, self.chain, self.total = seq, before, kept
        return [*ops, *self._append(events, payloads)]

    def prune(self, before_seq: int, islands: Sequence[Span] = ()) -> list[Op]:
        """Ops that delete the records below `before_seq` that lie in none of `islands`, and their steps: one
        transaction.

        The last record always stays. `holes` is right at once; should the write fail, reload.
        """
        gone = outside([*islands, (min(before_seq, self.next_seq - 1), self.next_seq)])
        known = set(self.holes)
        ops = [op for hole in gone if hole not in known for op in self._emptied(*hole)]
        return [*ops, *self._take_holes([hole for hole in gone if hole[0] > 0])]

    def _emptied(self, first: int, stop: int) -> list[Op]:
        low, high = self._first_step_from(first), self._first_step_from(stop)
        ops: list[Op] = [DeleteRange(Table.JOURNAL, self._key(first), self._key(stop))]
        if low < high:
            ops.append(DeleteRange(Table.STEPS, u64(self.run_id, low), u64(self.run_id, high)))
        return ops

    def _take_holes(self, holes: list[Span]) -> list[Op]:
        if holes == self.holes:
            return []
        self.holes = holes
        return [store_op(self.run_id, holes)]

    def _hole_from(self, seq: int) -> Span:
        """The first hole that ends above `seq`, which is then below it or in it."""
        number = bisect_right(self.holes, seq, key=lambda hole: hole[1])
        return self.holes[number] if number < len(self.holes) else (U64_MAX, U64_MAX)

    def _append(self, events: Sequence[Event], payloads: Sequence[bytes]) -> list[Op]:
        ops: list[Op] = [Fence(self.generation)]
        for event, payload in zip(events, payloads, strict=True):
            if isinstance(event, BatchDrawn):
                ops.append(Put(Table.STEPS, u64(self.run_id, event.step), u64(self.next_seq)))
            ops.append(self._record(payload))
        return ops

    def _record(self, payload: bytes) -> Put:
        self.chain = _link(self.chain, payload)
        self.total += _FIRST_PAYLOAD_BYTE + len(payload)
        body = _BODY.pack(self.total, self.chain)
        head = _HEAD.pack(VERSION, zlib.crc32(payload, zlib.crc32(body)))
        put = Put(Table.JOURNAL, self._key(self.next_seq), b"".join((head, body, payload)))
        self.next_seq += 1
        return put

    def _verified(
        self, seq: int, value: bytes, before: bytes | None, seen: int | None
    ) -> tuple[bytes, Event]:
        place = self._place(seq, seen)
        _, chain, payload = _open(place, value)
        if before is not None and _link(before, payload) != chain:
            raise RecordDamaged(place, "it does not continue the hash chain of the record before it")
        return chain, _event(place, payload)

    def _total_and_chain_before(self, seq: int, chain: bytes | None) -> tuple[int, bytes]:
        """As cut needs them. Reads record seq-1 and not the next, which may be the one that is damaged."""
        if seq == self.next_seq:
            return self.total, self.chain
        if seq == 0:
            return 0, NO_CHAIN
        value = self._store.get(Table.JOURNAL, self._key(seq - 1))
        if value is not None:
            total, found, _ = _open(self._place(seq - 1), value)
            return total, found
        if chain is None:
            raise RecordDamaged(self._place(seq - 1), "it is missing")
        return self._total_before(seq), chain

    def _total_before(self, seq: int) -> int:
        """The `total` below `seq`, of which the record is kept, or the one before."""
        if seq >= self.next_seq:
            return self.total
        value = self._store.get(Table.JOURNAL, self._key(seq))
        if value is not None:
            return _open(self._place(seq), value)[0] - len(value)
        value = self._store.get(Table.JOURNAL, self._key(seq - 1))
        if value is None:
            raise RecordDamaged(self._place(seq), "it is missing")
        return _open(self._place(seq - 1), value)[0]

    def _chain_before(self, seq: int) -> bytes | None:
        if seq == 0:
            return NO_CHAIN
        value = self._store.get(Table.JOURNAL, self._key(seq - 1))
        return None if value is None else _open(self._place(seq - 1), value)[1]

    def _first_step_from(self, seq: int) -> int:
        """One above the last step drawn before record `seq`, by bisection over the index."""
        low, high = self._index_bounds()
        while low < high:
            middle = (low + high) // 2
            at = self._index_row(middle)
            if at is None or at[1] >= seq:
                high = middle
            else:
                low = at[0] + 1
        return low

    def _index_bounds(self) -> tuple[int, int]:
        start, stop = prefix_range(u64(self.run_id))
        first = self._store.keys(Table.STEPS, start, stop, limit=1)
        last = self._store.keys(Table.STEPS, start, stop, reverse=True, limit=1)
        return (self._seq_of(first[0]), self._seq_of(last[0]) + 1) if first else (0, 0)

    def _index_row(self, step: int) -> tuple[int, int] | None:
        """(step, seq) of the first indexed step at or above `step`."""
        stop = prefix_range(u64(self.run_id))[1]
        rows = self._store.scan(Table.STEPS, u64(self.run_id, step), stop, limit=1)
        return (self._seq_of(rows[0][0]), int.from_bytes(rows[0][1], "big")) if rows else None

    def _key(self, seq: int) -> bytes:
        return u64(self.run_id, seq)

    def _seq_of(self, key: bytes) -> int:
        return int.from_bytes(key[8:16], "big")

    def _place(self, seq: int, seen: int | None = None) -> str:
        after = "" if seen is None else f" (after the batch of step {seen})"
        return f"run {self.run_id}, journal record {seq}{after}"


def _link(before: bytes, payload: bytes) -> bytes:
    return hashlib.blake2b(before + payload, digest_size=16).digest()


def _open(place: str, value: bytes) -> tuple[int, bytes, bytes]:
    """(total, chain, payload)."""
    if len(value) < _FIRST_PAYLOAD_BYTE:
        raise RecordDamaged(place, f"expected at least {_FIRST_PAYLOAD_BYTE} bytes, found {len(value)}")
    version, crc = _HEAD.unpack_from(value)
    if version != VERSION:
        raise RecordDamaged(place, f"expected format version {VERSION}, found {version}")
    if zlib.crc32(memoryview(value)[_HEAD.size :]) != crc:
        raise RecordDamaged(place)
    total, chain = _BODY.unpack_from(value, _HEAD.size)
    return total, chain, value[_FIRST_PAYLOAD_BYTE:]


def _event(place: str, payload: bytes) -> Event:
    try:
        return decode(payload)
    except ValueError as error:
        raise RecordDamaged(place, str(error)) from error
