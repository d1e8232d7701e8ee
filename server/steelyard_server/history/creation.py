"""A new environment comes into being whole or not at all.

LMDB makes its file first and writes the first pages later, unsynced: a kill in between leaves an empty file, and a
power cut a torn one, which cannot be opened again. So the file is made beside its place, committed, and renamed.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from .errors import StoreDamaged, StoreFailed

DATA = "data.mdb"
RESTORING = "restoring"
"""A folder in which a restore is under way, or was when it was killed."""
_DRAFT = "draft"

_MAGIC = 0xBEEFC0DE
_PAGE_HEAD = 16
_META = struct.Struct("<IIQQ II")
"""Magic, version, address, map size; then the free pages' database, which begins with the page size and flags."""
_LAST_PAGE = 24 + 2 * 48
"""Where in a meta page, behind its head, the last page in use stands, and behind that the transaction."""


def exists(directory: Path) -> bool:
    """Whether there is an environment, or what is left of one."""
    return (directory / DATA).exists()


def is_short(directory: Path) -> bool:
    """Whether the data file ends before the last page that it says it has. Also a whole one may: the last pages may be
    free, and were never written. StoreDamaged where it has not even its first two."""
    size = (directory / DATA).stat().st_size
    page, last = max(_metas(directory), key=lambda meta: meta[2])[:2]
    return (last + 1) * page > size


def _metas(directory: Path) -> list[tuple[int, int, int]]:
    """(page size, last page, transaction) of the two meta pages."""
    with (directory / DATA).open("rb") as file:
        found = []
        page = 0
        for number in range(2):
            file.seek(number * page + _PAGE_HEAD)
            meta = file.read(_LAST_PAGE + 16)
            if len(meta) < _LAST_PAGE + 16:
                raise StoreDamaged(directory, f"it ends within its first {number + 1} pages")
            magic, _, _, _, page, _ = _META.unpack_from(meta)
            if magic != _MAGIC or page < 256 or page & (page - 1):
                raise StoreDamaged(directory, f"its page {number} does not begin as one of LMDB's does")
            found.append((page, *struct.unpack_from("<QQ", meta, _LAST_PAGE)))
        return found


def create_whole(directory: Path, make: Callable[[Path], None]) -> None:
    """Has `make` commit and close an environment in a folder of its own and moves its data file to `directory`.

    Durable on return, the names of the folder and of the file included. OSError, or what `make` raises: there is none.
    StoreFailed: a restore was begun there.
    """
    if (directory / RESTORING).exists():
        raise StoreFailed(
            f"a restore into {directory} was begun and did not end: run it again, or remove {directory / RESTORING} to "
            "begin with nothing"
        )
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
