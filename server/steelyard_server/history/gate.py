"""Readers and the one who moves the map beneath them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import StoreFailed


class Gate:
    """Many pass `shared`, or one is alone `exclusive`. Who waits to be alone goes before those who come
    later.

    Not reentrant: a thread that holds it shared must not ask again.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False

    @contextmanager
    def shared(self, timeout: float) -> Iterator[None]:
        """StoreFailed when the one alone takes longer than `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._alone, timeout):
                raise StoreFailed(f"a read waited {timeout} s for the writer to grow or reopen the map")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if not self._inside:
                    self._changed.notify_all()

    @contextmanager
    def exclusive(self, timeout: float) -> Iterator[None]:
        """StoreFailed when readers do not leave within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            if not self._changed.wait_for(lambda: not self._alone, timeout):
                raise StoreFailed(f"waited {timeout} s for another thread to finish moving the map")
            self._alone = True
            if not self._changed.wait_for(lambda: not self._inside, deadline - time.monotonic()):
                self._alone = False
                self._changed.notify_all()
                raise StoreFailed(
                    f"{self._inside} reads were still open after {timeout} s; the map cannot move"
                )
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
