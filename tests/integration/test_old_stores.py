"""A folder that an older program wrote goes on under this one as if this one had written it.

`stores/` holds one of each format that was, compressed. To keep one of the format that is, before it changes:

    python tests/integration/test_old_stores.py tests/integration/stores/format-2.mdb.xz
"""

from __future__ import annotations

import lzma
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard.testing import ServerProcess, server

STORES = sorted((Path(__file__).parent / "stores").glob("*.mdb.xz"))
LONG = 60.0
SIZE = 300
SCORED = {"method": "scored", "score": "mean_loss", "floor": 0.1, "sampling": "stratified"}
RUNS: dict[str, dict[str, Any]] = {
    "scored": {"draw": SCORED, "history_size": 3, "staleness": 1},
    "static": {"draw": {"method": "scored", "score": "quality"}, "history_size": 1},
    "shuffled": {"history_size": 2, "staleness": "any"},
    "idle": {"draw": {"method": "scored", "score": "last_loss"}},
}


def train(run: steelyard.Run, steps: int) -> list[tuple[list[int], list[float]]]:
    """Ids and probabilities of the steps."""
    with run.join(prefetch=1, timeout=LONG) as session:
        served = []
        for _ in range(steps):
            batch = session.next()
            session.report(batch, np.asarray(1.0 + batch.ids % 7 + batch.step / 8, np.float32))
            served.append((batch.ids.tolist(), np.asarray(batch.probability).tolist()))
        session.flush(LONG)
    return served


def live(client: steelyard.Client) -> Iterator[None]:
    """Halts where a program whose store is kept makes its checkpoints."""
    client.create_dataset("d", SIZE)
    client.set_column("d", "quality", np.arange(SIZE, dtype=np.float32) % 11)
    runs = {
        name: client.create_run(name, dataset="d", batch_size=16, seed=3, **fields)
        for name, fields in RUNS.items()
    }
    runs["scored"].observe(np.arange(SIZE), np.arange(SIZE, dtype=np.float32) % 5)
    trained = [run for name, run in runs.items() if name != "idle"]
    for run in trained:
        train(run, 12)
    yield
    client.append_examples("d", 40)
    client.retire("d", np.arange(0, SIZE, 17))
    for run in trained:
        train(run, 6)
    yield
    runs["scored"].bookmark("held", 14)
    for run in trained:
        train(run, 5)
    train(runs["scored"].fork("forked", step=15), 4)


def told(client: steelyard.Client) -> dict[str, Any]:
    """What the runs are, what they have kept, and what they do next."""
    found: dict[str, Any] = {}
    for row in client.list_runs():
        run = client.run(row.name)
        column = [run.column(row.draw["score"]).tobytes()] if row.draw["method"] == "scored" else []
        before = [run.batch(step).ids.tolist() for step in range(run.stats().oldest_step, row.next_step)]
        histories = run.history(np.arange(row.dataset_size))
        bookmarks = run.info().bookmarks
        found[row.name] = row.next_step, column, before, histories, bookmarks, train(run, 8)
    client.run("scored").rewind("held")
    found["gone back"] = train(client.run("scored"), 8), client.run("scored").history(np.arange(SIZE))
    return found


@pytest.mark.parametrize("kept", STORES, ids=lambda path: path.name.partition(".")[0])
def test_a_store_of_an_older_format_goes_on_as_one_of_today_s(tmp_path: Path, kept: Path) -> None:
    with server(tmp_path / "new", checkpoint_interval_seconds=1e6) as client:
        for _ in live(client):
            pass
        wanted = told(client)
    old = tmp_path / "old"
    old.mkdir()
    (old / "data.mdb").write_bytes(lzma.decompress(kept.read_bytes()))
    with server(old, checkpoint_interval_seconds=0.05) as client:
        assert told(client) == wanted
        ends = {run.name: run.next_step for run in client.list_runs()}
    with server(old) as client:
        assert {run.name: run.next_step for run in client.list_runs()} == ends


def keep(path: Path) -> None:
    """Lives that life, with a checkpoint of each run at its halts, and keeps what a kill -9 leaves of it."""
    with tempfile.TemporaryDirectory() as folder, ServerProcess(folder) as process:
        for _ in live(process.client()):
            process.terminate()
            process.start()
        process.kill()
        path.write_bytes(lzma.compress((Path(folder) / "data" / "data.mdb").read_bytes(), preset=9))


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
