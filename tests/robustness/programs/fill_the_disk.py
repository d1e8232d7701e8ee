"""Lets commits fail as on a full disk, makes room again, and says what the store did meanwhile.

    python fill_the_disk.py DIRECTORY sync|interval

The full disk is a limit on the size of files (RLIMIT_FSIZE), which fails the same system calls. Prints one line of
JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

from steelyard_server.core.events import StepClosed
from steelyard_server.history.errors import StoreError, StoreFailed
from steelyard_server.history.journal import Journal
from steelyard_server.history.ops import Put, Table
from steelyard_server.history.store import Store

BIG = 300_000


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def outcome(store: Store, key: bytes, size: int) -> str:
    try:
        store.commit([Put(Table.META, key, bytes(size))])
    except StoreError as error:
        return type(error).__name__
    return "ok"


def wait_until(condition: Any) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def main(directory: Path, durability: str) -> dict[str, Any]:
    store = Store.open(directory, durability=durability, interval=0.02)  # type: ignore[arg-type]
    journal = Journal(store, 1)
    store.commit(journal.append([StepClosed(0, "owner")])[0])
    acknowledged = []
    for i in range(5):
        done = threading.Event()
        store.write([Put(Table.META, b"before %d" % i, b"v")], lambda error, done=done: done.set())  # type: ignore[misc]
        assert done.wait(20)
        acknowledged.append(i)
    generation = store.generation
    stale = journal.append([StepClosed(1, "owner")])[0]

    limit_files((directory / "data.mdb").stat().st_size)
    result: dict[str, Any] = {"while_full": [outcome(store, b"big", BIG)]}
    result["healthy_while_full"] = store.healthy
    result["while_full"].append(outcome(store, b"other", BIG))
    try:
        store.get(Table.META, b"before 0")
        result["read_while_full"] = "ok"
    except StoreFailed:
        result["read_while_full"] = "StoreFailed"

    limit_files(resource.RLIM_INFINITY)
    result["recovered"] = wait_until(lambda: store.healthy)
    result["generations"] = store.generation - generation
    result["kept"] = all(store.get(Table.META, b"before %d" % i) == b"v" for i in acknowledged)
    try:
        store.commit(stale)
        result["stale"] = "ok"
    except StoreFailed:
        result["stale"] = "StoreFailed"
    journal.reload()
    store.commit(journal.append([StepClosed(2, "owner")])[0])
    result["journal"] = [(seq, getattr(event, "step", None)) for seq, event in journal.read(0)]
    result["after"] = outcome(store, b"big", BIG)
    store.close()
    return result


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
