"""Other processes that read the data while it is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from steelyard_server.history.ops import Put, Table
from steelyard_server.history.store import Store

READ = """
import sys, lmdb
environment = lmdb.open(sys.argv[1], max_dbs=32)
with environment.begin() as transaction:
    transaction.stat()
    print("reading", flush=True)
    sys.stdin.read()
"""
ROWS, ROW_BYTES, WRITES = 50, 20_000, 400


def write(store: Store, number: int) -> None:
    store.commit([Put(Table.META, b"row %d" % (number % ROWS), bytes(ROW_BYTES))])


def test_a_reader_that_was_killed_keeps_no_page_from_being_used_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    for number in range(ROWS * 3):
        write(store, number)
    before = store.stats().used_bytes
    reader = subprocess.Popen(
        [sys.executable, "-c", READ, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"reading\n"
    reader.kill()
    reader.wait(30)
    reader.stdin.close()
    reader.stdout.close()
    for number in range(WRITES):
        write(store, number)
    # Without that they all take new pages: some 14 times as many.
    assert store.stats().used_bytes < 1.1 * before
    store.close()
