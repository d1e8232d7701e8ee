"""Where records are gone from the middle of a journal: pruned on purpose, and so not damaged.

    HOLES  run_id u64 BE → sealed: first u64 LE | stop u64 LE of each hole, in order

Written in the transaction that deletes the records. What is gone from the beginning needs no mention: the first record
that is there tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .errors import RecordDamaged
from .ops import Delete, Op, Table, u64
from .sealed import seal, unseal
from .store import Store

Span = tuple[int, int]
"""Records first..stop-1."""


def stored(store: Store, run_id: int) -> list[Span]:
    """The holes of a run's journal. RecordDamaged where their row is."""
    key = u64(run_id)
    value = store.get(Table.HOLES, key)
    if value is None:
        return []
    place = f"run {run_id}, the list of what is pruned from its journal"
    numbers = unseal(place, key, value)
    if len(numbers) % 16:
        raise RecordDamaged(place, f"expected pairs of 8-byte numbers, found {len(numbers)} bytes")
    bounds: list[int] = np.frombuffer(numbers, "<u8").tolist()
    return list(zip(bounds[::2], bounds[1::2], strict=True))


def store_op(run_id: int, holes: Sequence[Span]) -> Op:
    """The op that makes `stored` return these."""
    if not holes:
        return Delete(Table.HOLES, u64(run_id))
    return seal(Table.HOLES, u64(run_id), np.array(holes, "<u8").tobytes())


def outside(pieces: Iterable[Span]) -> list[Span]:
    """What no piece holds, from record 0 to where the last one begins. Pieces may overlap; empty ones hold nothing."""
    gone: list[Span] = []
    end = 0
    for first, stop in sorted(pieces):
        if first > end:
            gone.append((end, first))
        end = max(end, stop)
    return gone
