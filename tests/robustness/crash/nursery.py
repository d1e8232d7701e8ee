"""Processes that are born ready: forked by a program that has imported everything (programs/nursery.py)."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_BIRTH_SECONDS = 120.0
"""The first birth waits for all that is imported."""


class NurseryError(Exception):
    """The nursery itself does not do its work."""


class Child:
    """One process. As subprocess.Popen, as far as a crash test needs it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended = threading.Event()
        self._status = 0

    def poll(self) -> int | None:
        return self._status if self._ended.is_set() else None

    def wait(self, timeout: float) -> int:
        """The exit status; minus the signal's number where one ended it. TimeoutError."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"process {self.pid} has not ended within {timeout:g} s")
        return self._status

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def ended(self, status: int) -> None:
        self._status = status
        self._ended.set()


class Nursery:
    """Forks on demand. All that it has borne dies with it, and it with this process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.robustness.crash.programs.nursery", str(os.getpid())],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A key that is pressed to stop the crash test must not reach them before it does.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self._born: queue.SimpleQueue[Child | None] = queue.SimpleQueue()
        self._children: dict[int, Child] = {}
        threading.Thread(target=self._listen, name="nursery", daemon=True).start()

    def bear(self, program: str, arguments: Sequence[str], log: Path) -> Child:
        """A new process that runs `program` of tests/robustness/crash/programs; what it writes goes to `log`."""
        order = {"program": program, "arguments": list(arguments), "log": str(log)}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((json.dumps(order) + "\n").encode())
            self._process.stdin.flush()
            child = self._born.get(timeout=_BIRTH_SECONDS)
        except (BrokenPipeError, queue.Empty) as error:
            raise NurseryError(f"no {program} was born within {_BIRTH_SECONDS:g} s: {error!r}") from error
        if child is None:
            raise NurseryError(f"the nursery ended with status {self._process.wait(10)}")
        return child

    def end(self) -> None:
        """Ends it and whoever is left of its children."""
        left = [child for child in list(self._children.values()) if child.poll() is None]
        for child in left:
            child.kill()
        deadline = time.monotonic() + 30
        for child in left:
            child.wait(max(0.1, deadline - time.monotonic()))
        self._process.kill()
        self._process.wait(30)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "status" in said:
                self._children.pop(said["pid"]).ended(said["status"])
            else:
                child = self._children[said["pid"]] = Child(said["pid"])
                self._born.put(child)
        self._born.put(None)
