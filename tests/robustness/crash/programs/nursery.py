"""Imports everything once and forks a process for each server and trainer, so that none pays for its start: nursery.py
PARENT

Reads one JSON object a line: the program, its arguments and the file for what it writes. Answers {"pid": ...} to each,
and says {"pid": ..., "status": ...} when one has ended, as subprocess would give the status.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import steelyard  # noqa: F401 -- before gRPC: see steelyard.forking
import steelyard_server.server  # noqa: F401 -- the command imports it when it serves; here, once for all
from tests.robustness.crash.programs import served, trainer
from tests.robustness.crash.programs.die_with_parent import die_with_parent

PROGRAMS: dict[str, Callable[[], None]] = {"served": served.main, "trainer": trainer.main}
_LATER = ("client", "run", "session", "stream", "transport")
"""Modules of the client that are imported when they are first used; here, once for all."""


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    for name in _LATER:
        importlib.import_module(f"steelyard.{name}")
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    text = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _report_the_dead()
        if 0 in ready:
            read = os.read(0, 65536)
            if not read:
                return
            *lines, text = (text + read).split(b"\n")
            for line in lines:
                _fork(json.loads(line))


def _fork(order: dict[str, Any]) -> None:
    nursery = os.getpid()
    child = os.fork()
    if child == 0:
        _live(order, nursery)
    _say(pid=child)


def _report_the_dead() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say(pid=pid, status=os.waitstatus_to_exitcode(status))


def _say(**values: Any) -> None:
    os.write(1, (json.dumps(values) + "\n").encode())


def _live(order: dict[str, Any], nursery: int) -> None:
    """Becomes the program, and never returns: what the nursery does at its end is not the child's to do."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        log = os.open(Path(order["log"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.closerange(3, 256)
        sys.argv = [order["program"], str(nursery), *order["arguments"]]
        PROGRAMS[order["program"]]()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
