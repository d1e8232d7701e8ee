"""Imports everything once and forks a process for each life that is asked for: no life pays the second of start-up.

zygote.py: reads one JSON object a line, writes one JSON object a line. A life that is to be traced waits until every
thread of it is; a life says "ready" when it does, and its exit status follows.

    directory, notes, durability, first, stop    as life.Life has them
    patient          tries again what is unavailable
    wait             "opening" or "serving": where it waits for its tracer; null: nowhere
    unsynced         LMDB does not sync: a fault that the tests must find
    end              "close", "exit" (cut off) or "outcome" (closes, and writes Outcome as JSON beside the notes)
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import steelyard  # noqa: F401 -- before gRPC: see steelyard.forking
import steelyard_server.server  # noqa: F401 -- as steelyard.local does, but once for all lives
from steelyard_server import kernel_cache
from steelyard_server.history import store
from tests.robustness.power.life import Life, Outcome, outcome, to_json

_TRACER_SECONDS = 60.0
_PR_SET_PTRACER = 0x59616D61
_LATER = ("client", "run", "session", "stream", "transport")
"""Modules of the client that are imported when they are first used; here, once for all lives."""
NO_TRACER = 97
FAILED = 98


def main() -> None:
    for name in _LATER:
        importlib.import_module(f"steelyard.{name}")
    kernel_cache.load(kernel_cache.folder())
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            live_and_exit(order)
        _, status = os.waitpid(child, 0)
        say(exit=os.waitstatus_to_exitcode(status))


def say(**values: Any) -> None:
    os.write(1, (json.dumps(values) + "\n").encode())


def live_and_exit(order: dict[str, Any]) -> None:
    """Never returns: what the zygote does at its end is not the child's to do."""
    try:
        live(order)
    except BaseException:
        Path(order["notes"] + ".error").write_text(traceback.format_exc())
        os._exit(FAILED)
    os._exit(0)


def live(order: dict[str, Any]) -> None:
    if order["unsynced"]:
        setattr(store.lmdb, "open", functools.partial(store.lmdb.open, sync=False))  # noqa: B010 -- typed
    notes = Path(order["notes"])
    life = Life(Path(order["directory"]), notes, order["durability"], patient=order["patient"])
    if order["wait"] == "opening":
        await_tracer()
    client = life.open()
    if order["wait"] == "serving":
        await_tracer()
    life.go(client, order["first"], order["stop"])
    if order["end"] == "outcome":
        found: Outcome = outcome(Path(order["directory"]), client)
        Path(order["notes"] + ".outcome").write_text(to_json(found))
    elif order["end"] == "close":
        client.close()


def await_tracer() -> None:
    """On return every thread of this process is traced."""
    # Where only ancestors may trace, this lets the test's strace, too.
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1))
    say(ready=os.getpid())
    deadline = time.monotonic() + _TRACER_SECONDS
    while not all(map(_traced, Path("/proc/self/task").iterdir())):
        if time.monotonic() > deadline:
            os._exit(NO_TRACER)
        time.sleep(0.001)


def _traced(task: Path) -> bool:
    try:
        status = (task / "status").read_text()
    except OSError:
        # It ended meanwhile.
        return True
    return "\nTracerPid:\t0\n" not in status


if __name__ == "__main__":
    main()
