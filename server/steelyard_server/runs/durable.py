"""Something that is on its way to the disk, and what waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Durable:
    """Thread-safe. Whatever is given to `then` runs once, in order: at once where the write is durable already."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], None]] = []
        self.reached = False

    def then(self, action: Callable[[], None]) -> None:
        with self._lock:
            if not self.reached:
                self._waiting.append(action)
                return
        action()

    def reach(self) -> None:
        with self._lock:
            self.reached = True
            waiting, self._waiting = self._waiting, []
        for action in waiting:
            action()
