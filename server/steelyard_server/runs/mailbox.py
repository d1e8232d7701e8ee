"""A thread that owns an object: the only one that touches it, one message at a time.

What has gathered is handled in one turn, and what shall be done once for all of it (drawing, writing) at its end.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

from steelyard_server.log import logger
from steelyard_server.runs.errors import Unavailable

T = TypeVar("T")
Message = Callable[[], None]

_log = logger(__name__)

TURN_MESSAGES = 256
"""A turn ends at this many, so that the first of them does not wait for the last for long."""


class Mailbox:
    """Runs posted callables in order on one daemon thread, `tick` about every `tick_seconds`, and `after_turn` whenever
    it has run some and no more are there."""

    def __init__(
        self,
        name: str,
        tick: Message,
        tick_seconds: float = 0.25,
        *,
        after_turn: Message = lambda: None,
    ) -> None:
        self._name = name
        self._tick = tick
        self._tick_seconds = tick_seconds
        self._after_turn = after_turn
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        # Nothing is queued behind the end: whoever posts learns that it will not be handled.
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closed

    def post(self, message: Message) -> bool:
        """Queues `message`; what it raises is logged. False, and it is dropped, after `close`."""
        with self._lock:
            if not self._closed:
                self._messages.put(message)
            return not self._closed

    def call(self, function: Callable[[], T], timeout: float = 30.0) -> T:
        """Runs `function` on the thread and returns its result, or raises what it raised.

        Unavailable when it did not come to its turn, or did not end, within `timeout` seconds.
        """
        future = self.ask(function)
        try:
            return future.result(timeout)
        except FutureTimeout:
            future.cancel()
            raise Unavailable(
                f"{self._name} did not answer within {timeout:g} s: it is busy; try again"
            ) from None

    def ask(self, function: Callable[[], T]) -> Future[T]:
        """Queues `function`; the future has its result, or what it raised. Unavailable after `close`."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        if not self.post(run):
            raise Unavailable(f"{self._name} is closed")
        return future

    def close(self, timeout: float) -> bool:
        """Stops after what is queued; False where the thread was still busy after `timeout` seconds."""
        with self._lock:
            self._closed = True
            self._messages.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        due = time.monotonic() + self._tick_seconds
        open_ = True
        while open_:
            with contextlib.suppress(queue.Empty):
                open_ = self._turn(self._messages.get(timeout=max(0.0, due - time.monotonic())))
            if open_ and time.monotonic() >= due:
                self._handle(self._tick)
                self._handle(self._after_turn)
                due = time.monotonic() + self._tick_seconds

    def _turn(self, message: Message | None) -> bool:
        """Handles what is there, `message` first; False where the end is."""
        handled = 0
        with contextlib.suppress(queue.Empty):
            while message is not None:
                self._handle(message)
                handled += 1
                if handled == TURN_MESSAGES:
                    break
                message = self._messages.get_nowait()
        self._handle(self._after_turn)
        return message is not None

    def _handle(self, message: Message) -> None:
        try:
            message()
        except Exception:
            _log.exception("message_failed", actor=self._name)
