"""Who reads the past of a run beside it, so that nothing is taken from under them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from steelyard_server.runs.errors import Unavailable

_PATIENCE_SECONDS = 60.0


class Holds:
    """Thread-safe. Counted on the run's thread, let go of anywhere."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def take(self) -> Callable[[], None]:
        """Until the answer is called, once, there is one more hold."""
        with self._changed:
            self._count += 1
        return self._release

    def await_none(self, run: str) -> None:
        """Unavailable after 60 s."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._count, _PATIENCE_SECONDS):
                raise Unavailable(
                    f"run {run!r} cannot go back now: it waited {_PATIENCE_SECONDS:.0f} s for the end of {self._count} "
                    "forks that read what this would undo; try again"
                )

    def _release(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()
