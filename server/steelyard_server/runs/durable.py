"""Something that is on its way to the disk, and what waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from steelyard_server.log import logger

_log = logger(__name__)


class Durable:
    """Thread-safe. Whatever is given to `then` runs once, in order: at once where the write is durable already, and all
    that was given before has run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], object]] = []
        self.reached = False

    @property
    def awaited(self) -> bool:
        return bool(self._waiting)

    def then(self, action: Callable[[], object]) -> None:
        with self._lock:
            if not self.reached:
                self._waiting.append(action)
                return
        action()

    def reach(self) -> None:
        """What an action raises is logged, and the others run."""
        while True:
            with self._lock:
                if not self._waiting:
                    self.reached = True
                    return
                waiting, self._waiting = self._waiting, []
            for action in waiting:
                try:
                    action()
                except Exception:
                    _log.exception("durable_action_failed")
