"""One opener a directory: LMDB's own lock lets several processes write, which two daemons must not."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref
from pathlib import Path

from .errors import StoreBusy

_held: weakref.WeakSet[LockFile] = weakref.WeakSet()


class LockFile:
    """Holds `directory`/LOCK until `release` or the end of the process. StoreBusy names the holder.

    A forked child lets go of its copy at once, or it would hold the directory after its parent was killed.
    """

    def __init__(self, directory: Path, *, to_read: bool = False) -> None:
        """`to_read`: nothing will be written, so a file system that is read-only will do."""
        self._descriptor = _opened(directory, to_read=to_read)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(self._descriptor)
            os.close(self._descriptor)
            raise StoreBusy(
                f"{directory} is held by process {holder}; one process at a time may open it"
            ) from None
        except OSError:
            os.close(self._descriptor)
            raise
        # Who holds it is told as a courtesy: a disk that is full keeps nobody out.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        _held.add(self)

    def release(self) -> None:
        """Lets others in. Idempotent."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):  # closing it lets go of it too
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._forget()

    def _forget(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _opened(directory: Path, *, to_read: bool) -> int:
    try:
        return os.open(directory / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno != errno.EROFS or not to_read:
            raise
    # Where it is missing nobody holds it, and nobody can make it.
    lock = directory / "LOCK"
    return os.open(lock if lock.exists() else directory, os.O_RDONLY | os.O_CLOEXEC)


def _holder(descriptor: int) -> str:
    try:
        return os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
    except OSError:  # of a folder without the file
        return "unknown"


def _forget_all() -> None:
    for lock in list(_held):
        lock._forget()


os.register_at_fork(after_in_child=_forget_all)
