"""The programs that a benchmark starts: one line of JSON at a time over their pipes, and none outlives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_TICKS = os.sysconf("SC_CLK_TCK")
_LEAVE_SECONDS = 20.0


class Program:
    """A module of tests/benchmarks/programs in a process of its own. Each ends itself after `life` seconds, so that a
    pipe that is read here ends too."""

    def __init__(
        self,
        module: str,
        *arguments: object,
        life: float = 120.0,
        python: str = sys.executable,
        within: Sequence[str] = (),
    ) -> None:
        """`within`: a command that runs the one that follows it."""
        command = [*within, python, "-m", f"tests.benchmarks.programs.{module}", "--life", str(life)]
        self._module = module
        self._process = subprocess.Popen(
            [*command, *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def read(self) -> Any:
        """The next line. RuntimeError where the program ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait(_LEAVE_SECONDS)
            raise RuntimeError(f"{self._module}: expected a line of JSON, it ended with status {status}")
        return json.loads(line)

    def tell(self, message: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing its input asks a server to leave; a client has left by itself.
        with self._process:
            if self._process.stdin is not None:
                self._process.stdin.close()
            try:
                self._process.wait(0.1 if error else _LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()


@dataclass(frozen=True, slots=True)
class Load:
    """What clients did within one window."""

    steps: float
    """Steps of all streams, a second."""
    cpu: float
    """Microseconds of the server's CPU for each."""
    answers: list[dict[str, Any]]


def load(server: int, clients: Sequence[tuple[str, Sequence[object]]], seconds: float) -> Load:
    """Starts the clients (module, arguments), waits until every stream of all is under way, then counts for `seconds`.

    `server` is the process whose CPU is read. RuntimeError where a stream failed or stood still.
    """
    with ExitStack() as stack:
        programs = [stack.enter_context(Program(module, *arguments)) for module, arguments in clients]
        for program in programs:
            program.read()
        start = time.monotonic() + 0.2
        for program in programs:
            program.tell({"start": start, "stop": start + seconds})
        time.sleep(max(0.0, start - time.monotonic()))
        before = _cpu_seconds(server)
        time.sleep(max(0.0, start + seconds - time.monotonic()))
        cpu = _cpu_seconds(server) - before
        answers = [program.read() for program in programs]
    errors = [error for answer in answers for error in answer["errors"]]
    if errors or any(answer["least"] == 0 for answer in answers):
        raise RuntimeError(f"expected every stream to make steps, got {errors or answers}")
    steps = sum(answer["steps"] for answer in answers)
    return Load(steps / seconds, cpu / steps * 1e6, answers)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
