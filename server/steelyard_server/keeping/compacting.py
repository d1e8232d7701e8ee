"""Gives the disk back what a store no longer uses: LMDB's file grows and never shrinks by itself.

A copy without the free pages is made beside the file, verified by a child process, and takes its place by one rename.
A kill at any point leaves the old file or the new one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from steelyard_server.history.creation import DATA, sync_directory
from steelyard_server.history.lockfile import LockFile
from steelyard_server.history.ops import Table
from steelyard_server.history.store import Snapshot, Store

from .errors import BusyError, KeepingError, RefusedError
from .manifest import Manifest
from .work import Task
from .writing import facts

_DRAFT = "compacting"
_SECONDS = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Compacted:
    """Bytes of the data file."""

    before: int
    after: int


def compact(directory: Path, *, say: Callable[[str], None] = lambda _: None) -> Compacted:
    """Compacts the store that nobody serves. StoreBusy where somebody does; StoreError, KeepingError: it is as it
    was."""
    if not (directory / DATA).exists():
        raise RefusedError(f"{directory} holds no store: it has no {DATA}")
    # What a killed server left in its tail is in the file then, and the file of this format.
    Store.open(directory).close()
    lock = LockFile(directory)
    try:
        tail = directory / "tail"
        if tail.exists() and tail.stat().st_size:
            raise BusyError(f"a server has begun to write to {directory}; stop it first")
        return _swap(directory, say)
    finally:
        lock.release()


def _swap(directory: Path, say: Callable[[str], None]) -> Compacted:
    before = (directory / DATA).stat().st_size
    draft = directory / _DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        say(f"copying what is used of {before} bytes")
        copied = Task("copy", "the copy", directory=str(directory), to=str(draft)).run(_SECONDS)
        say(f"verifying {(draft / DATA).stat().st_size} bytes")
        _verify(draft, copied)
        after = (draft / DATA).stat().st_size
        _own_as(draft / DATA, directory / DATA)
        (draft / DATA).replace(directory / DATA)
        sync_directory(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Compacted(before, after)


def _own_as(new: Path, old: Path) -> None:
    """Root may do this for a server that runs as somebody else, and must be able to open it."""
    stat = old.stat()
    new.chmod(stat.st_mode & 0o7777)
    if (stat.st_uid, stat.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(new, stat.st_uid, stat.st_gid)


def _verify(draft: Path, copied: dict[str, Any]) -> None:
    damages: list[str] = []

    def note(said: dict[str, dict[str, str]]) -> None:
        finding = said.get("finding")
        if finding is not None and finding["severity"] == "damage":
            damages.append(f"{finding['where']}: {finding['what']}")

    task = Task(
        "check",
        "the verification",
        directory=str(draft),
        shared=False,
        deep=False,
        expected=copied["manifest"],
    )
    report = task.run(_SECONDS, note)
    if report["rows"] != copied["rows"]:
        damages.append(f"the copy has {report['rows']} rows of {copied['rows']}")
    if damages:
        raise KeepingError(f"the store was not compacted and is as it was: {damages[0]}")


def copy_compacted(directory: Path, to: Path) -> dict[str, Any]:
    """What is in use of `directory`, as a data file in the folder `to`, durable; and what must be found there. For a
    process of its own. Nobody may write to `directory`."""
    snapshot = Snapshot(directory, shared=False)
    try:
        datasets, runs = facts(snapshot)
        with (to / DATA).open("xb") as out:
            snapshot.copy(out.fileno())
            os.fsync(out.fileno())
        rows = sum(snapshot.entries(table) for table in Table)
        made = Manifest(
            name="",
            created_unix_seconds=time.time(),
            steelyard_version=metadata.version("steelyard"),
            store_format=snapshot.format,
            transaction=snapshot.transaction,
            bytes=0,
            parts=(),
            datasets=datasets,
            runs=runs,
        )
    finally:
        snapshot.close()
    sync_directory(to)
    return {"rows": rows, "manifest": made.model_dump(mode="json")}
