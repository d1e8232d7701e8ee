"""`steelyard serve` with places where it can be told to die: served.py PARENT ARM_FILE FAULT serve ...

The server is the real one. Around some of its functions stands a counter: when the file ARM_FILE says "commit.end 3",
the third time from then on that the place commit.end is passed, the process kills itself with SIGKILL: at once,
between two instructions of the server, with its other threads wherever they are.

FAULT is "none", or the name of a fault to plant, which shows that the crash test finds it.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steelyard_server.cli.main import app
from steelyard_server.history.store import Store
from steelyard_server.history.tail import Tail
from steelyard_server.runs.frozen import Frozen
from steelyard_server.runs.journaled import Journaled
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.run import Run
from tests.robustness.crash.programs.die_with_parent import die_with_parent

POINTS: dict[str, tuple[type, str, bool]] = {
    # name: class, method, whether the place is behind it
    "commit.begin": (Store, "_transact", False),
    "commit.end": (Store, "_transact", True),
    "answer.begin": (Store, "_answer", False),
    "tail.end": (Tail, "append", True),
    "map.begin": (Store, "_grow", False),
    "map.end": (Store, "_grow", True),
    "checkpoint.begin": (RunLog, "freeze", True),
    "checkpoint.made": (RunLog, "row", True),
    "checkpoint.end": (Frozen, "end", True),
    "prune.begin": (RunLog, "pruning", False),
    "prune.end": (RunLog, "unread", True),
    "rewind.begin": (RunLog, "rewind", False),
    "rewind.end": (Journaled, "rewind", True),
    "fork.half": (RunLog, "adopt", False),
    "dataset.told": (Run, "reconcile", False),
    "load.begin": (RunLog, "load", False),
    "load.end": (RunLog, "load", True),
}


class Trap:
    """Counts arrivals at the place that the file names, and ends the process at the one that it says."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._left: tuple[str, int] | None = None

    def passed(self, point: str) -> None:
        with self._lock:
            if not self._file.exists():
                self._left = None
                return
            if self._left is None:
                name, count = self._file.read_text().split()
                self._left = name, int(count)
            name, left = self._left
            if name != point:
                return
            if left > 1:
                self._left = name, left - 1
                return
            self._file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def stand_around(trap: Trap, point: str, owner: type, method: str, *, behind: bool) -> None:
    inner: Callable[..., Any] = getattr(owner, method)

    @functools.wraps(inner)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if not behind:
            trap.passed(point)
        result = inner(*args, **kwargs)
        if behind:
            trap.passed(point)
        return result

    setattr(owner, method, guarded)


def forget_a_loss() -> None:
    """A recovery that gets one reported loss wrong."""
    inner = RunLog.load

    @functools.wraps(inner)
    def load(self: RunLog) -> Any:
        state = inner(self)
        for record in state.steps.values():
            if record.reported.any() and not record.folded:
                record.signals["loss"][record.reported.argmax()] += 1
                break
        return state

    RunLog.load = load  # type: ignore[method-assign]


FAULTS: dict[str, Callable[[], None]] = {"none": lambda: None, "forget a loss": forget_a_loss}


def main() -> None:
    parent, arm, fault = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    die_with_parent(parent)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    FAULTS[fault]()
    trap = Trap(arm)
    for point, (owner, method, behind) in POINTS.items():
        stand_around(trap, point, owner, method, behind=behind)
    sys.argv[1:] = sys.argv[4:]
    app()


if __name__ == "__main__":
    main()
