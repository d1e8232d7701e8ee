"""The searches that are tests of their own, played whole: each system call of a life, and each image of a power cut.

What the test suite takes samples of (test_syscall_kills.py, test_power_cut.py) is tried in full with
STEELYARD_POWER=all; here their counts come into the score. STEELYARD_POWER_ONLY=sync-fdatasync plays those alone whose
names have that in them, and STEELYARD_POWER_SEEDS=7 the random images of another seed.
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
from tests.robustness.test_syscall_kills import KILLS

KILLED = "test_killed_on_entering_any_system_call_a_run_goes_on_as_if_nothing_had_been"
AFTER_AN_ERROR = "test_after_an_error_of_the_disk_nothing_is_acknowledged_that_is_not_there"
WHATEVER = "test_whatever_a_power_cut_leaves_holds_all_that_was_acknowledged"


@fault(
    "killed at a system call",
    how="strace kills the server on entering the n-th fdatasync, pwrite or writev, for all n of a run's life; a round "
    "is one call under one durability",
    bar="what was acknowledged is there, and the run ends as undisturbed, for 100 % of n",
    rounds=6,
    suite=False,
)
def calls(bench: Bench) -> Iterator[Round]:
    for wait, durability, call, stride in KILLS:
        if call in ("fdatasync", "pwrite64", "writev"):
            one = f"[{wait}-{durability}-{call}-{stride}]"
            yield from _searched(f"robustness/test_syscall_kills.py::{KILLED}{one}", r"(\d+) kills", "kills")


@fault(
    "error at a system call",
    how="strace fails the n-th fdatasync, pwrite, writev or ftruncate with EIO or ENOSPC, for all n of a run's life",
    bar="nothing acknowledged that is not there, no restart, the run ends as undisturbed, for 100 % of n",
    rounds=1,
    suite=False,
)
def call_errors(bench: Bench) -> Iterator[Round]:
    yield from _searched(f"robustness/test_syscall_kills.py::{AFTER_AN_ERROR}", r"(\d+) times E", "errors")


@fault(
    "image of a power cut",
    how="what unsynced writes may leave (none, all, torn, any subset) is rebuilt from a trace of system calls",
    bar="the state is one that the run had, with all that was acknowledged; 0 damaged",
    rounds=2,
    suite=False,
)
def images(bench: Bench) -> Iterator[Round]:
    for durability in ("sync", "interval"):
        test = f"robustness/test_power_cut.py::{WHATEVER}[{durability}]"
        yield from _searched(test, r"(\d+) images", "images")


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
    yield from _searched("keeping/test_calls.py", r"(\d+) kills", "kills", "killed")


@fault(
    "keeping, error at a system call",
    how="the same, where the call fails with EIO or ENOSPC",
    bar="the same; it ends with an error or is done, and what failed leaves nothing, for 100 % of n",
    rounds=1,
    suite=False,
)
def keeping_errors(bench: Bench) -> Iterator[Round]:
    yield from _searched("keeping/test_calls.py", r"(\d+) errors", "errors", "error")


def _searched(test: str, pattern: str, counted: str, which: str = "") -> Iterator[Round]:
    """One round: that test, or those of a file that `which` names, played whole. None where another is asked for."""
    if os.environ.get("STEELYARD_POWER_ONLY", "") not in test:
        return
    if missing := strace.missing():
        raise CannotBeTried(missing)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", f"tests/{test}", "-k", which],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"STEELYARD_POWER": "all", **os.environ},
    )
    found = sum(int(count) for count in re.findall(pattern, done.stdout))
    if done.returncode:
        raise Broken(f"of {found} {counted} one did not hold\n{done.stdout[-3000:]}")
    yield Round(None, {counted: found})
