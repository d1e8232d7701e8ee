"""The searches that are tests of their own, played whole: each system call of a life, and each image of a power cut.

What the test suite takes samples of (test_syscall_kills.py, test_power_cut.py) is tried in full with
STEELYARD_POWER=all; here their counts come into the score.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

from tests.robustness.faults.outcome import ROOT
from tests.robustness.faults.registry import Bench, Broken, CannotBeTried, Round, fault
from tests.robustness.power import strace


@fault(
    "killed at a system call",
    how="strace kills the server on entering the n-th call of a kind, for all n of a life, and while it opens",
    bar="what was acknowledged is there, and the run ends as undisturbed, for 100 % of n",
    rounds=1,
    suite=False,
)
def calls(bench: Bench) -> Iterator[Round]:
    yield from _searched("robustness/test_syscall_kills.py", "killed", r"(\d+) kills", "kills")


@fault(
    "error at a system call",
    how="strace fails the n-th fdatasync, pwrite, writev or ftruncate with EIO or ENOSPC, for all n of a run's life",
    bar="nothing acknowledged that is not there, no restart, the run ends as undisturbed, for 100 % of n",
    rounds=1,
    suite=False,
)
def call_errors(bench: Bench) -> Iterator[Round]:
    yield from _searched("robustness/test_syscall_kills.py", "after_an_error", r"(\d+) times E", "errors")


@fault(
    "image of a power cut",
    how="what unsynced writes may leave (none, all, torn, any subset) is rebuilt from a trace of system calls",
    bar="the state is one that the run had, with all that was acknowledged; 0 damaged",
    rounds=1,
    suite=False,
)
def images(bench: Bench) -> Iterator[Round]:
    yield from _searched("robustness/test_power_cut.py", "whatever", r"(\d+) images", "images")


@fault(
    "keeping killed at a system call",
    how="strace kills a backup (that removes an older one), a restore, and the first start on a folder of an older "
    "format, on entering the n-th call that changes something, for all n",
    bar="what is listed is whole, never none; no server takes half a restore for data, and the next one is whole; the "
    "folder is of the old format or the new, with all its rows, and the next start goes on, for 100 % of n",
    rounds=1,
    suite=False,
)
def keeping_killed(bench: Bench) -> Iterator[Round]:
    yield from _searched("keeping/test_calls.py", "killed", r"(\d+) kills", "kills")


@fault(
    "keeping, error at a system call",
    how="the same, where the call fails with EIO or ENOSPC",
    bar="the same; it ends with an error or is done, and what failed leaves nothing, for 100 % of n",
    rounds=1,
    suite=False,
)
def keeping_errors(bench: Bench) -> Iterator[Round]:
    yield from _searched("keeping/test_calls.py", "error", r"(\d+) errors", "errors")


def _searched(file: str, which: str, pattern: str, counted: str) -> Iterator[Round]:
    if missing := strace.missing():
        raise CannotBeTried(missing)
    while True:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-s",
                f"tests/{file}",
                "-k",
                which,
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={"STEELYARD_POWER": "all", **os.environ},
        )
        found = sum(int(count) for count in re.findall(pattern, done.stdout))
        if done.returncode:
            raise Broken(f"of {found} {counted} one did not hold\n{done.stdout[-3000:]}")
        yield Round(None, {counted: found})
