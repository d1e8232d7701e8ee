"""Backups and checks of a folder that no server holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from steelyard_server.history.creation import DATA
from steelyard_server.history.lockfile import LockFile
from steelyard_server.history.store import Store, check_format, check_whole

from .errors import BrokenOffError, DiedError, RefusedError
from .places import place_at, refuse_inside
from .work import Task
from .writing import PART_BYTES, backup_by

_UNLIMITED = 1e12


def backup(directory: Path, to: str, seconds: float) -> dict[str, Any]:
    """As a server makes one, also of a disk that has become read-only. StoreBusy where one holds the directory: ask it
    instead."""
    _must_hold_a_store(directory)
    refuse_inside(to, directory)
    _take_in_tail(directory)
    lock = LockFile(directory, to_read=True)
    try:
        check_whole(directory)
        check_format(directory)
        task = Task(
            "backup",
            "the backup",
            directory=str(directory),
            to=to,
            shared=False,
            rate=_UNLIMITED,
            part_bytes=PART_BYTES,
            keep=0,
        )
        made = backup_by(task, seconds)[0]
    finally:
        lock.release()
    return {
        "name": made.name,
        "place": place_at(to).where,
        "bytes": made.bytes,
        "runs": {run.name: run.next_step for run in made.runs},
    }


def _take_in_tail(directory: Path) -> None:
    """What a killed server left in its tail is in the file then. Where there is nothing, the folder keeps its format:
    it may be that of an older program, for which the backup is the way back."""
    path = directory / "tail"
    if not path.exists() or not path.stat().st_size:
        return
    if not os.access(directory, os.W_OK):
        raise RefusedError(
            f"{directory} cannot be written to, and acknowledged writes are in {path} alone: copy the folder to a disk "
            "that can be written to, and back up the copy"
        )
    Store.open(directory).close()


def check(directory: Path, deep: bool, seconds: float) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """(findings, report) of a folder, nothing of which is changed but its lock file. StoreBusy: a server holds it.
    BrokenOffError: it took longer than `seconds`, which says nothing of the folder."""
    _must_hold_a_store(directory)
    findings: list[dict[str, str]] = []

    def note(said: dict[str, Any]) -> None:
        if "finding" in said:
            found = dict(said["finding"])
            found["remedy"] = found.pop("do")
            findings.append(found)

    task = Task("check", "the check", directory=str(directory), shared=False, deep=deep, expected=None)
    lock = LockFile(directory, to_read=True)
    try:
        report = task.run(seconds, note)
    except BrokenOffError:
        raise
    except DiedError as died:
        remedy = "restore a backup (`steelyard restore`)"
        findings.append(
            {"severity": "damage", "where": str(directory / DATA), "what": str(died), "remedy": remedy}
        )
        report = {}
    finally:
        lock.release()
    return findings, report


def _must_hold_a_store(directory: Path) -> None:
    if not (directory / DATA).exists():
        raise RefusedError(f"{directory} holds no store: it has no {DATA}")
