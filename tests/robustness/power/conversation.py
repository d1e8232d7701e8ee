"""A program of this folder as a process that answers each line with a line."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[3]
_PATIENCE = 90.0
"""Seconds. Longer than any wait within a program, so that the program's own message is what is seen."""


class Silence(Exception):  # noqa: N818 -- named for what happened
    """No answer, and why."""


class Conversation:
    """Runs `program` with this interpreter and its path; what it writes to its standard error goes to `log`."""

    def __init__(self, program: str | Path, log: Path) -> None:
        path = os.pathsep.join([*(part for part in sys.path if part), str(_ROOT)])
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                # One of these works at a time: more threads would only be in each other's way.
                env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            )

    def say(self, line: str) -> None:
        """Silence where it is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Silence(f"it ended with status {self._process.wait(_PATIENCE)}") from None

    def hear(self) -> str:
        """The next line. Silence where none came in time, or it ended before."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _PATIENCE)[0]:
            raise Silence(f"no answer within {_PATIENCE:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise Silence(f"it ended with status {self._process.wait(_PATIENCE)}")
        return line.decode()

    def end(self) -> None:
        """Kills it, if it is there. Idempotent."""
        self._process.kill()
        self._process.wait(_PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
