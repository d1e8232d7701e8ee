"""strace: whether it works here, and how a process that runs is put under it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

_SECONDS = 60.0


@functools.cache
def missing() -> str | None:
    """Why nothing can be traced here; None where it can."""
    if sys.platform != "linux" or shutil.which("strace") is None:
        return "strace is not installed"
    try:
        tried = subprocess.run(
            ["strace", "-f", "-qq", "-o", os.devnull, "-e", "inject=getppid:error=EIO:when=1", "true"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"strace did not trace a process within {_SECONDS:g} s"
    return None if tried.returncode == 0 else f"strace cannot trace here: {tried.stderr.strip()}"


class Attached:
    """strace on all threads of a process, and on those that it will have, and its children; without `follow` on its
    first thread alone."""

    def __init__(self, pid: int, *options: str, follow: bool = True) -> None:
        self._pid = pid
        self._process = subprocess.Popen(
            ["strace", *(["-f"] if follow else []), "-qq", *options, "-p", str(pid)],
            stderr=subprocess.PIPE,
            text=True,
        )

    def await_begin(self) -> None:
        """Until it sees all that the process does from now on. RuntimeError with what strace said where it fails."""
        deadline = time.monotonic() + _SECONDS
        while "\nTracerPid:\t0\n" in Path(f"/proc/{self._pid}/status").read_text():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise RuntimeError(f"strace did not attach: {self._process.communicate()[1]}")
            time.sleep(0.001)

    def wait(self) -> None:
        """Until the process is over. RuntimeError with what strace said where it failed."""
        try:
            _, said = self._process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise RuntimeError(f"strace was still there {_SECONDS:g} s after its process had ended") from None
        if self._process.returncode not in (0, -9):
            raise RuntimeError(f"strace ended with status {self._process.returncode}: {said}")


def inject(output: Path, call: str, what: str, when: str) -> tuple[str, ...]:
    """Options that disturb a system call: `what` as strace has it (signal=KILL, error=EIO), on its `when`-th entry.

    strace counts by thread and by call: it happens in the first thread that gets there, and in each that does after.
    """
    return ("-o", str(output), "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={when}")


def injected(output: Path) -> int:
    """How often the call was disturbed, by what strace wrote."""
    return output.read_text("ascii").count("(INJECTED)")


def record(output: Path, calls: str) -> tuple[str, ...]:
    """Options that write every one of `calls` as it returns, with the time, all of its bytes and the paths of files."""
    return ("-o", str(output), "-ttt", "-y", "-xx", "-s", str(1 << 24), "-e", f"trace={calls}")
