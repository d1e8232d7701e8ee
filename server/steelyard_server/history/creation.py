"""A new environment comes into being whole or not at all.

LMDB makes its file first and writes the first pages later, unsynced: a kill in between leaves an empty file, and a
power cut a torn one, which cannot be opened again. So the file is made beside its place, committed, and renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

DATA = "data.mdb"
_DRAFT = "draft"


def exists(directory: Path) -> bool:
    """Whether there is an environment. An empty file is what a kill left before this module was."""
    path = directory / DATA
    return path.exists() and path.stat().st_size > 0


def create_whole(directory: Path, make: Callable[[Path], None]) -> None:
    """Has `make` commit and close an environment in a folder of its own and moves its data file to `directory`.

    Durable on return, the names of the folder and of the file included. OSError, or what `make` raises: there is none.
    """
    draft = directory / _DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    make(draft)
    (draft / DATA).replace(directory / DATA)
    for place in (directory, directory.parent):
        sync_directory(place)
    shutil.rmtree(draft, ignore_errors=True)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
