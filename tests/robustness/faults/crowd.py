"""Many callers at once, each of which calls again as soon as it is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Self

_SECONDS = 120.0


class Crowd:
    """`count` threads that make `call` until the block is left. `seconds` are of the calls that succeeded, `errors` are
    of the others."""

    def __init__(self, call: Callable[[], Any], count: int) -> None:
        self.seconds: list[float] = []
        self.errors: list[Exception] = []
        self._call = call
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._go, daemon=True) for _ in range(count)]

    def _go(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._call()
            except Exception as error:
                self.errors.append(error)
            else:
                self.seconds.append(time.monotonic() - began)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a call did not end"
