"""Makes a backup of a store as it is at one moment, while others go on writing to it. For a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Generator, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from steelyard_server.history.checkpoints import Checkpoints
from steelyard_server.history.errors import StoreError
from steelyard_server.history.journal import Journal
from steelyard_server.history.ops import Table, prefix_range, u64
from steelyard_server.history.registry import Registry, Run
from steelyard_server.history.store import Snapshot
from steelyard_server.log import logger

from . import manifest
from .errors import KeepingError
from .identity import identity
from .manifest import DatasetFacts, Manifest, Part, RunFacts
from .places import Place, new_name
from .work import Task, Watch

PART_BYTES = 1 << 30
RATE = 128 << 20
"""Bytes a second at most, unless said otherwise: the disk is also that of the commits."""

_PIECE = 1 << 20

_log = logger(__name__)


def write_backup(
    directory: Path, place: Place, *, shared: bool, rate: float = RATE, part_bytes: int = PART_BYTES
) -> Manifest:
    """A backup of `directory` in `place`. `shared`: a server may be writing to it meanwhile.

    It holds every commit that had ended when this began, of all runs and datasets, as of one moment. StoreError where
    the store cannot be read; what `place` raises. Then there is no new backup, and what there is of it is swept later.
    """
    begun = time.time()
    snapshot = Snapshot(directory, shared=shared)
    name = new_name(identity(snapshot))
    try:
        datasets, runs = facts(snapshot)
        parts = _write_parts(snapshot, place, name, rate, part_bytes)
        made = Manifest(
            name=name,
            created_unix_seconds=begun,
            steelyard_version=metadata.version("steelyard"),
            store_format=snapshot.format,
            transaction=snapshot.transaction,
            bytes=sum(part.bytes for part in parts),
            parts=tuple(parts),
            datasets=datasets,
            runs=runs,
        )
    except BaseException:
        with contextlib.suppress(Exception):  # why it failed is what is told
            place.remove(name)
        raise
    finally:
        snapshot.close()
    place.publish(name, manifest.to_bytes(made))
    return made


def backup_by(task: Task, seconds: float, watch: Watch = lambda: "") -> tuple[Manifest, list[str]]:
    """The backup that a child's `task` makes, and what it removed for it. That the latter fails does not make it one
    that failed. Errors as of Task.run."""
    said: list[Manifest] = []

    def note(value: dict[str, Any]) -> None:
        said.append(Manifest.model_validate(value["made"]))

    try:
        removed = task.run(seconds, note, watch)
    except KeepingError as error:
        if not said:
            raise
        _log.warning("backups_not_removed", error=str(error))
        removed = []
    return said[0], removed


def facts(snapshot: Snapshot) -> tuple[tuple[DatasetFacts, ...], tuple[RunFacts, ...]]:
    """What a restored store is compared with. Reads a few rows a run. RecordDamaged where they are."""
    registry = Registry(snapshot)
    datasets = tuple(
        DatasetFacts(name=one.name, size=one.size, retired=one.retired, fingerprint=one.fingerprint)
        for one in registry.datasets()
    )
    return datasets, tuple(_run_facts(snapshot, run) for run in registry.runs())


def _run_facts(snapshot: Snapshot, run: Run) -> RunFacts:
    journal = Journal(snapshot, run.run_id)
    last = snapshot.keys(Table.STEPS, *prefix_range(u64(run.run_id)), reverse=True, limit=1)
    drawn = int.from_bytes(last[0][8:], "big") + 1 if last else run.parent_step
    # A run that went back to the oldest step that it keeps has no drawn one, only the checkpoint there.
    saved = [step for _, step in Checkpoints(snapshot, run.run_id).list()]
    return RunFacts(
        name=run.name,
        dataset=run.dataset,
        next_step=max([drawn, *saved[-1:]]),
        journal_records=journal.next_seq,
        chain=journal.chain.hex(),
    )


def _write_parts(snapshot: Snapshot, place: Place, name: str, rate: float, part_bytes: int) -> list[Part]:
    parts: list[Part] = []
    # Closed also where a write fails: the snapshot cannot be let go of while it is copied.
    with contextlib.closing(_copied(snapshot)) as copied:
        stream = _Slowly(copied, rate)
        while stream.more():
            file = f"data.{len(parts):05d}"
            digest, size = hashlib.sha256(), 0
            with place.writing(name, file) as out:
                while size < part_bytes and (piece := stream.take(part_bytes - size)):
                    out.write(piece)
                    digest.update(piece)
                    size += len(piece)
            parts.append(Part(name=file, bytes=size, sha256=digest.hexdigest()))
    return parts


class _Slowly:
    """A stream of pieces, of which no more than `rate` bytes a second are given out."""

    def __init__(self, pieces: Iterator[bytes], rate: float) -> None:
        self._pieces = pieces
        self._rate = rate
        self._begun = time.monotonic()
        self._given = 0
        self._held = memoryview(b"")

    def more(self) -> bool:
        if not self._held:
            self._held = memoryview(next(self._pieces, b""))
        return bool(self._held)

    def take(self, most: int) -> memoryview:
        """Some bytes, at most `most`; none at the end."""
        self.more()
        taken, self._held = self._held[:most], self._held[most:]
        self._given += len(taken)
        ahead = self._given / self._rate - (time.monotonic() - self._begun)
        if ahead > 0:
            time.sleep(ahead)
        return taken


def _copied(snapshot: Snapshot) -> Generator[bytes, None, None]:
    """The data file as LMDB copies it, in pieces. Closing it early ends the copy."""
    source, sink = os.pipe()
    failed: list[BaseException] = []

    def copy() -> None:
        try:
            snapshot.copy(sink)
        except BaseException as error:
            failed.append(error)
        finally:
            os.close(sink)

    thread = threading.Thread(target=copy, name="copy", daemon=True)
    thread.start()
    try:
        while piece := os.read(source, _PIECE):
            yield piece
    finally:
        # LMDB's copy ends by an error where nobody reads it any more.
        os.close(source)
        thread.join()
    if failed:
        raise failed[0] if isinstance(failed[0], StoreError) else StoreError(f"the copy failed: {failed[0]}")
