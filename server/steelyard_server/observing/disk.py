"""Figures of the store and its file system, read beside whoever wants them: a disk may take as long as it likes."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from steelyard_server.history.errors import StoreError
from steelyard_server.history.store import Store, StoreStats
from steelyard_server.log import logger

_EVERY_SECONDS = 1.0

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class DiskFigures:
    """`free_bytes` are those that the server may use; `at` in time.monotonic()."""

    free_bytes: int
    size_bytes: int
    store: StoreStats
    at: float

    @property
    def age_seconds(self) -> float:
        return max(0.0, time.monotonic() - self.at)


class DiskWatch:
    """Reads on a thread of its own, about every second. `figures` are the newest, None before the first."""

    def __init__(self, directory: Path, store: Store) -> None:
        self._directory = directory
        self._store = store
        self._stopping = threading.Event()
        self.figures: DiskFigures | None = None
        self.read()
        self._thread = threading.Thread(target=self._run, name="disk watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Reads no more; does not wait for a disk that does not answer."""
        self._stopping.set()
        self._thread.join(_EVERY_SECONDS)

    def read(self) -> None:
        before = self.figures
        disk = os.statvfs(self._directory)
        stats = self._store.stats()
        if before is not None and not stats.used_bytes:
            # It is closed and opened again after a failure: its sizes are those of before.
            stats = before.store
        self.figures = DiskFigures(
            disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize, stats, time.monotonic()
        )

    def _run(self) -> None:
        while not self._stopping.wait(_EVERY_SECONDS):
            try:
                self.read()
            except (OSError, StoreError) as error:
                _log.warning("disk_not_read", error=str(error))
            except Exception:
                _log.exception("disk_not_read")
