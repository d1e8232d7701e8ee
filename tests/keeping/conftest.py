"""Small stores with something of everything in them, made once by a real server."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import steelyard
from steelyard_server.disk.v1 import checkpoints_pb2
from steelyard_server.history.ops import Table, prefix_range, u64
from steelyard_server.history.registry import Registry
from steelyard_server.history.sealed import seal, unseal
from steelyard_server.history.store import Store
from steelyard_server.keeping.manifest import Manifest
from steelyard_server.keeping.places import place_at
from steelyard_server.keeping.writing import write_backup

BATCH = 8
Train = Callable[[steelyard.Run, int], list[list[int]]]
Mount = Callable[..., Path]


def trained(run: steelyard.Run, steps: int) -> list[list[int]]:
    """Draws and reports so many steps; the ids of each. Losses follow from the ids: a run can be lived again."""
    drawn = []
    with run.join(rank=0, world_size=1) as session:
        for _ in range(steps):
            batch = session.next()
            drawn.append(batch.ids.tolist())
            session.report(batch, ((batch.ids % 7) / 3.0 + 0.1).astype(np.float32))
    return drawn


@pytest.fixture
def train() -> Train:
    return trained


def _fill(directory: Path) -> None:
    for life in range(2):
        with steelyard.local(directory, kernels="numpy") as client:
            client.create_dataset("text", size=300, fingerprint="f1", exist_ok=True)
            plain = client.create_run("plain", dataset="text", batch_size=BATCH, exist_ok=True)
            scored = client.create_run(
                "scored", dataset="text", batch_size=BATCH, history_size=4, exist_ok=True,
                draw={"method": "scored", "score": "last_loss"},
            )  # fmt: skip
            trained(plain, 12)
            trained(scored, 12)
            if life:
                scored.bookmark("kept", 3)
                scored.rewind(8)
                scored.fork("branch", step=5)
                client.retire("text", [3, 4])
                client.set_column("text", "domain", np.arange(300) % 3)
                trained(scored, 3)
                trained(client.run("branch"), 4)


@pytest.fixture(scope="session")
def _original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("store") / "data"
    _fill(directory)
    return directory


@pytest.fixture
def store_dir(_original: Path, tmp_path: Path) -> Path:
    """A copy of a store that no server holds: two runs, a fork, a bookmark, checkpoints, what a rewind leaves."""
    return Path(shutil.copytree(_original, tmp_path / "data"))


@pytest.fixture
def backed_up(store_dir: Path, tmp_path: Path) -> tuple[Path, Manifest]:
    """A folder with one backup of that store, in three parts."""
    place = tmp_path / "backups"
    size = (store_dir / "data.mdb").stat().st_size
    return place, write_backup(store_dir, place_at(str(place)), shared=False, part_bytes=size // 3 + 1)


@pytest.fixture
def astray(store_dir: Path) -> Path:
    """That store with a checkpoint of another state than its journal leads to, all checksums right: what only a replay
    can tell."""
    store = Store.open(store_dir)
    run = Registry(store).run("plain")
    assert run is not None
    found = store.last_of(Table.CHECKPOINTS, [prefix_range(u64(run.run_id))])[0]
    assert found is not None
    row = checkpoints_pb2.Checkpoint.FromString(unseal("", *found))
    meta = json.loads(row.meta_json)
    meta["counters"]["reported_losses"] = 5
    row.meta_json = json.dumps(meta, sort_keys=True, separators=(",", ":"))
    store.commit([seal(Table.CHECKPOINTS, found[0], row.SerializeToString(deterministic=True))])
    store.close()
    return store_dir


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a file system at the folder of that name; where it is."""
    with contextlib.ExitStack() as mounted:

        def make(name: str, *how: str) -> Path:
            place = tmp_path / name
            place.mkdir(parents=True)
            ran("mount", *how, str(place))
            mounted.callback(subprocess.run, ["umount", "-l", str(place)], check=True, timeout=60)
            return place

        yield make


def ran(*command: str) -> None:
    """Skips the test where it cannot be run here."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip(f"{command[0]} is not installed")
    if done.returncode:
        pytest.skip(f"{command[0]} does not work here: {done.stderr.strip()}")
