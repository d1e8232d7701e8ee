"""Locks by name: who changes one thing waits only for those who change the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from steelyard_server.runs.errors import NotNow

Name = tuple[str, ...]

_WAIT_SECONDS = 60.0


class NamedLocks:
    """Thread-safe. Not reentrant. A lock exists while somebody holds or wants it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[Name, tuple[threading.Lock, int]] = {}

    @contextmanager
    def of(self, *names: Name) -> Iterator[None]:
        """Holds the locks of `names`, taken in sorted order. NotNow where one is not free within a minute."""
        with ExitStack() as held:
            for name in sorted(set(names)):
                held.enter_context(self._one(name))
            yield

    @contextmanager
    def _one(self, name: Name) -> Iterator[None]:
        with self._guard:
            lock, wanted = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = lock, wanted + 1
        try:
            if not lock.acquire(timeout=_WAIT_SECONDS):
                raise NotNow(
                    f"another change of {' '.join(name)} has gone on for {_WAIT_SECONDS:g} s; try again"
                )
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._guard:
                lock, wanted = self._locks[name]
                if wanted == 1:
                    del self._locks[name]
                else:
                    self._locks[name] = lock, wanted - 1
