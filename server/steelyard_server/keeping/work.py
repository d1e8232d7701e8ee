"""Has a child process do what may kill or hold up whoever does it: a truncated LMDB file ends its reader by SIGBUS,
and a walk through gigabytes holds the interpreter.

    parent → stdin of the child: the task as a line of JSON; it stays open, and when it closes the child ends
    child  → stdout: lines of JSON, {"said": ...} as it goes on, then one {"done": ...} or {"failed": [kind, message]}
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from .errors import KINDS, BrokenOffError, DiedError, KeepingError

_MOST_COMPLAINT = 2000
_POLL_SECONDS = 0.2
_END_SECONDS = 10.0

Said = Callable[[Any], None]
Watch = Callable[[], str]
"""Why what is under way must end; empty where it need not."""


class Task:
    """One piece of work in a child. `stop` may be called from any thread."""

    def __init__(self, name: str, what: str, **arguments: Any) -> None:
        """`name` is one of worker.TASKS; `what` says in words, for messages, what is done: "the backup"."""
        self._what = what
        self._stopped = threading.Event()
        self._line = json.dumps({"task": name, "arguments": arguments}) + "\n"

    def stop(self) -> None:
        """Ends it at once; what it was doing is as after a kill."""
        self._stopped.set()

    def run(self, seconds: float, said: Said = lambda _: None, watch: Watch = lambda: "") -> Any:
        """Its result. `said` is called for what it says as it goes on. KeepingError: what it failed by; DiedError where
        it died; BrokenOffError where it took longer than `seconds`, was stopped, or `watch` gave a reason to break it
        off; it is asked all the time."""
        result: Any = None
        for kind, value in self.lines(seconds, watch):
            if kind == "said":
                said(value)
            elif kind == "done":
                result = value
        return result

    def lines(self, seconds: float, watch: Watch = lambda: "") -> Iterator[tuple[str, Any]]:
        """("said", value) as it goes on, then ("done", value); ("silent", None) after each moment in which nothing is
        said, so that whoever listens may stop: to close it ends the child. Errors as of `run`."""
        child = subprocess.Popen(
            [sys.executable, "-m", "steelyard_server.keeping.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield from self._conversation(child, seconds, watch)
        finally:
            child.kill()
            # A disk that does not answer keeps even a killed process.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_END_SECONDS)
                for stream in (child.stdin, child.stdout, child.stderr):
                    if stream is not None:
                        with contextlib.suppress(BrokenPipeError):
                            stream.close()

    def _conversation(
        self, child: subprocess.Popen[str], seconds: float, watch: Watch
    ) -> Iterator[tuple[str, Any]]:
        lines: queue.Queue[str | None] = queue.Queue()
        complaints: list[str] = []
        readers = [
            threading.Thread(target=_read_lines, args=(child.stdout, lines.put), daemon=True),
            threading.Thread(target=_read_lines, args=(child.stderr, complaints.append), daemon=True),
        ]
        # A task is more than a pipe holds, and a child that hangs may never read it.
        for thread in (*readers, threading.Thread(target=self._hand_over, args=(child.stdin,), daemon=True)):
            thread.start()
        deadline = time.monotonic() + seconds
        while True:
            line = self._next(lines, deadline, seconds, watch)
            if line == "":
                yield "silent", None
                continue
            # Half a line is the last that one that was killed said.
            if line is None or not line.endswith("\n"):
                break
            message = json.loads(line)
            if "failed" in message:
                kind, text = message["failed"]
                raise KINDS.get(kind, KeepingError)(text)
            yield next(iter(message.items()))
            if "done" in message:
                return
        try:
            status = child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            raise DiedError(f"{self._what} failed: its process fell silent and did not end") from None
        for reader in readers:
            reader.join(_END_SECONDS)
        raise DiedError(f"{self._what} failed: its process {ended_by(status)}{_last(complaints)}")

    def _hand_over(self, stdin: Any) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has died, which is told where its words are read
            stdin.write(self._line)
            stdin.flush()

    def _next(
        self, lines: queue.Queue[str | None], deadline: float, seconds: float, watch: Watch
    ) -> str | None:
        """A line; None when there are no more, and none of it where none has come for a moment."""
        if self._stopped.is_set():
            raise BrokenOffError(f"{self._what} was broken off")
        if reason := watch():
            raise BrokenOffError(f"{self._what} was broken off: {reason}")
        left = deadline - time.monotonic()
        if left <= 0:
            raise BrokenOffError(
                f"{self._what} did not end within {round(seconds, 1):g} s and was broken off"
            )
        try:
            return lines.get(timeout=min(left, _POLL_SECONDS))
        except queue.Empty:
            return ""


def ended_by(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"ended with status {status}"
    number = -status
    why = {
        signal.SIGBUS: ": the file is shorter than what is in it",
        signal.SIGSEGV: ": pages of the file are not what they should be",
        signal.SIGABRT: ": pages of the file are not what they should be",
        signal.SIGKILL: ", by somebody, or for want of memory",
    }
    try:
        return f"was killed by {signal.Signals(number).name}{why.get(signal.Signals(number), '')}"
    except ValueError:
        return f"was killed by signal {number}"


def _read_lines(stream: Any, take: Callable[[str | None], object]) -> None:
    for line in stream:
        take(line)
    take(None)


def _last(complaints: list[str]) -> str:
    text = " ".join("".join(line for line in complaints if line).split())
    return f" ({text[-_MOST_COMPLAINT:]})" if text else ""
