"""kill -9 and full disks, with real processes and real files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steelyard_server.core.events import BatchDrawn
from steelyard_server.history.codec import encode
from steelyard_server.history.journal import Journal
from steelyard_server.history.ops import Table, u64
from steelyard_server.history.store import Durability, Store

PROGRAMS = Path(__file__).parent / "programs"
RUN = 3
ROUNDS = 20
LEAST_ACKNOWLEDGED = 40
"""A kill counts only under load: this many records of its round were acknowledged before it."""


def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS / program), *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def kill_under_load(child: subprocess.Popen[bytes], after: float) -> list[int]:
    """Kills it `after` seconds after enough was acknowledged; returns all that it said was."""
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(LEAST_ACKNOWLEDGED)]
    time.sleep(after)
    child.kill()
    lines += child.stdout.read().splitlines(keepends=True)
    child.stdout.close()
    assert child.wait(20) == -9, "it ended by itself"
    return [int(line) for line in lines if line.endswith(b"\n")]


@pytest.mark.parametrize("durability", ["sync", "interval"])
def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path, durability: Durability) -> None:
    moments = random.Random(20)
    sys.path.insert(0, str(PROGRAMS))
    try:
        from append_until_killed import event_at  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(PROGRAMS))
    end = checked = 0
    for round_number in range(ROUNDS):
        acknowledged = kill_under_load(
            start("append_until_killed.py", str(tmp_path), durability), moments.uniform(0, 0.08)
        )
        assert acknowledged == list(range(end, end + len(acknowledged))), "acknowledged out of order"
        store = Store.open(tmp_path)
        journal = Journal(store, RUN)
        assert journal.next_seq >= end + len(acknowledged), f"round {round_number} lost acknowledged records"
        end = journal.next_seq
        chain = journal.chain_at(checked)
        for seq, event in journal.read(checked, end, chain=chain):
            assert encode(event) == encode(event_at(seq)), seq
            assert not isinstance(event, BatchDrawn) or journal.seq_of_step(event.step) == seq
        checked = end
        markers = [
            int.from_bytes(key[-8:], "big") for key in store.keys(Table.CHUNKS, u64(RUN), u64(RUN + 1))
        ]
        assert markers == list(range(max(0, end - 1 - (end - 37) % 37), end)) or end < 37, (
            "a delete was undone or lost"
        )
        store.close()
    store = Store.open(tmp_path)
    assert sum(1 for _ in Journal(store, RUN).read(0, end)) == end >= ROUNDS * LEAST_ACKNOWLEDGED
    store.close()


@pytest.mark.parametrize("durability", ["sync", "interval"])
def test_a_full_disk_fails_writes_and_heals_without_a_restart(tmp_path: Path, durability: Durability) -> None:
    child = start("fill_the_disk.py", str(tmp_path), durability)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    result = json.loads(output)
    generations = result.pop("generations")
    assert generations >= 1
    assert result == {
        "while_full": ["StoreFailed", "StoreFailed"],
        "healthy_while_full": False,
        "read_while_full": "StoreFailed",
        "recovered": True,
        "kept": True,
        "stale": "StoreFailed",
        "journal": [[0, 0], [1, 2]],
        "after": "ok",
    }
