"""Files that are read again when they change, and never make what depends on them fail."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from steelyard_server.log import logger

T = TypeVar("T")

_SETTLED_SECONDS = 2.0
"""A file may change again without another time of change, within the grain of the clock that marks it: one that has
changed this recently is read again to be sure."""

_LOOK_SECONDS = 1.0

_log = logger(__name__)


class Watched(Generic[T]):
    """What `load` makes of some files, as of when they were last right. Thread-safe.

    The first load raises what `load` or reading raises. Later ones do not: what was right before stays in force, and
    what is wrong is logged, once for each state of the files.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        load: Callable[[Sequence[bytes]], T],
    ) -> None:
        """`load` gets the contents in the order of `paths`."""
        self._what, self._paths, self._load = what, list(paths), load
        self._lock = threading.Lock()
        self._marks = self._look()
        self._contents = [path.read_bytes() for path in self._paths]
        self._settled = self._is_settled()
        self._value = load(self._contents)
        self._loaded = self._contents
        self.generation = 0
        """Counts the times that something new came into force."""
        self.fault: str | None = None
        """What is wrong with the files as they are; None where they are what is in force."""

    @property
    def paths(self) -> Sequence[Path]:
        return self._paths

    @property
    def value(self) -> T:
        """What is in force. Looks at no file, and so waits for none."""
        return self._value

    def current(self) -> T:
        """What is in force after a look at each file, which may take as long as their file system likes; never raises.
        Whoever finds another thread looking goes on with what is there."""
        if self._lock.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._lock.release()
        return self._value

    def soon(self, seconds: float) -> T:
        """As `current`, where the look takes no longer than that; else what is in force meanwhile."""
        looking = threading.Thread(target=self.current, name="file look", daemon=True)
        looking.start()
        looking.join(seconds)
        return self._value

    def _refresh(self) -> None:
        try:
            marks = self._look()
            if marks == self._marks and self._settled:
                return
            contents = [path.read_bytes() for path in self._paths]
        except OSError as error:
            self._complain(f"cannot read {error.filename}: {error.strerror}")
            self._marks, self._settled = [], False
            return
        self._marks, self._settled = marks, self._is_settled()
        if contents == self._contents:
            if contents == self._loaded:
                self.fault = None  # It could not be read for a while.
            return
        self._contents = contents
        try:
            value = self._load(contents)
        except Exception as error:
            self._complain(str(error))
            return
        self._value, self._loaded, self.fault = value, contents, None
        self.generation += 1
        _log.info("file_reloaded", what=self._what, files=[str(path) for path in self._paths])

    def _complain(self, fault: str) -> None:
        if fault != self.fault:
            self.fault = fault
            _log.warning(
                "file_not_reloaded",
                what=self._what,
                files=[str(path) for path in self._paths],
                fault=fault,
                consequence="what was read before stays in force",
            )

    def _look(self) -> list[tuple[int, int, int, int]]:
        marks = [path.stat() for path in self._paths]
        return [(mark.st_dev, mark.st_ino, mark.st_mtime_ns, mark.st_size) for mark in marks]

    def _is_settled(self) -> bool:
        newest = max((mark[2] for mark in self._marks), default=0)
        return abs(time.time_ns() - newest) > _SETTLED_SECONDS * 1e9


class Looking:
    """Looks at files about every second, each on a thread of its own: a file system that hangs holds up nobody else,
    and no exit."""

    def __init__(self, files: Sequence[Watched[Any]]) -> None:
        self._stopping = threading.Event()
        for one in files:
            threading.Thread(target=self._look, args=(one,), name="file watch", daemon=True).start()

    def close(self) -> None:
        """Waits for nothing: a look may never end."""
        self._stopping.set()

    def _look(self, files: Watched[Any]) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            # Nobody looks any more where this raises, as it may where a log cannot be written.
            with contextlib.suppress(Exception):
                files.current()
