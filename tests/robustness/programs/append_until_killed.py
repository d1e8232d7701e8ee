"""Appends to a journal for ever and prints the seq of each record once it is acknowledged. To be killed.

    python append_until_killed.py DIRECTORY sync|interval

What record `seq` holds follows from `seq` alone (event_at), so that the one who kills can check it. Every now and
then a write goes through LMDB at once and undoes an earlier one, as rewinding and pruning do.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np

from steelyard_server.core.events import BatchDrawn, Event, LossesReported
from steelyard_server.history.journal import Journal
from steelyard_server.history.ops import DeleteRange, Put, Table, u64
from steelyard_server.history.store import Store

RUN = 3
MARKERS = (u64(RUN) + b"marker", u64(RUN) + b"marker\xff")
IN_FLIGHT = 64


def event_at(seq: int) -> Event:
    """Every other record is a batch of about the size that a real one has."""
    numbers = np.arange(seq % 700)
    if seq % 2 == 0:
        return BatchDrawn(seq // 2, numbers + seq, numbers / 7, 0.0, seq, seq)
    return LossesReported(seq // 2, 0, {"loss": (numbers / 3).astype(np.float32)})


def main(directory: Path, durability: str) -> None:
    store = Store.open(directory, durability=durability, interval=0.03)  # type: ignore[arg-type]
    journal = Journal(store, RUN)
    room = threading.Semaphore(IN_FLIGHT)

    def acknowledged(seq: int, error: BaseException | None) -> None:
        if error is not None:
            os._exit(3)
        os.write(1, b"%d\n" % seq)
        room.release()

    while True:
        room.acquire(timeout=20)
        ops, seq = journal.append([event_at(journal.next_seq)])
        ops.append(Put(Table.CHUNKS, MARKERS[0] + u64(seq), b""))
        now = seq % 37 == 36
        if now:
            ops.insert(0, DeleteRange(Table.CHUNKS, *MARKERS))
        store.write(ops, partial(acknowledged, seq), now=now)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
