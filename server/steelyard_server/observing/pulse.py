"""Whether the server has started, is alive, and takes work; each with the reason where it does not.

Asked by probes, from any thread, and answered without waiting for anything.

    startup     the catalog is loaded and the address is bound
    readiness   writes succeed, the disk has room to go on, nothing drains
    liveness    the event loop and the writer go round: what a restart would cure. A disk that is full, or a commit that
                failed and is tried again, is nothing that a restart cures
"""

from __future__ import annotations

import time

from steelyard_server.history.store import Store
from steelyard_server.observing.disk import DiskWatch

_DISK_SECONDS = 60.0
"""A disk that has not told its free space for so long answers nothing else either."""


class Pulse:
    """`stuck_seconds`: the event loop, or the writer at one commit, is taken for stuck after so long."""

    def __init__(self, stuck_seconds: float, headroom_bytes: int) -> None:
        self._stuck_seconds = stuck_seconds
        self._headroom_bytes = headroom_bytes
        self._store: Store | None = None
        self._disk: DiskWatch | None = None
        self._loop_at: float | None = None
        self._serving = False
        self._draining = False

    # ---- told by the server ----

    def watch(self, store: Store, disk: DiskWatch) -> None:
        self._store, self._disk = store, disk

    def beat(self) -> None:
        """By the event loop, whenever it comes round."""
        self._loop_at = time.monotonic()

    def serves(self) -> None:
        self._serving = True

    def drains(self) -> None:
        """From here on nothing new is taken, and the event loop and the writer may end."""
        self._draining = True

    # ---- asked by probes ----

    def unstarted(self) -> str | None:
        """Why the server has not started, None once it has: then it stays so."""
        return None if self._serving else "starting: the data directory is being read"

    def unready(self) -> str | None:
        """Why no work should be sent, None where it may."""
        store, disk = self._store, self._disk
        if self._draining:
            return "draining"
        if not self._serving or store is None or disk is None:
            return self.unstarted()
        if (failing := store.failing) is not None:
            return failing
        figures = disk.figures
        if figures is None or figures.age_seconds > _DISK_SECONDS:
            return f"the disk has not told its free space for {_DISK_SECONDS:.0f} s"
        if figures.free_bytes < self._headroom_bytes:
            return (
                f"the disk has {figures.free_bytes} bytes free; expected at least disk_headroom_bytes ="
                f" {self._headroom_bytes}"
            )
        return None

    def stuck(self) -> str | None:
        """Why a restart would help, None where it would not."""
        if self._draining:
            return None
        lag = self.loop_lag_seconds()
        if lag > self._stuck_seconds:
            return f"the event loop has not come round for {lag:.0f} s"
        busy = 0.0 if self._store is None else self._store.writer_busy_seconds()
        if busy == float("inf"):
            return "the writer of the store has died"
        if busy > self._stuck_seconds:
            return f"the writer of the store has been at one commit for {busy:.0f} s"
        return None

    def loop_lag_seconds(self) -> float:
        return 0.0 if self._loop_at is None else max(0.0, time.monotonic() - self._loop_at)
