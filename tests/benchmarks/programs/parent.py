"""What every program here owes to the process that started it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser()
    arguments.add_argument(
        "--life", type=float, required=True, help="seconds after which this process is gone"
    )
    return arguments


def live_for(seconds: float) -> None:
    """Ends this process after so long, whatever it is doing: nobody else may be left to."""
    timer = threading.Timer(seconds, os._exit, [70])
    timer.daemon = True
    timer.start()


def keep_output() -> None:
    """From here on only `say` reaches the parent: libraries that print write into nothing."""
    mine = os.dup(sys.stdout.fileno())
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
    sys.stdout = os.fdopen(mine, "w")


def say(message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def hear_window() -> tuple[float, float]:
    """(start, stop) of what shall be counted, on the monotonic clock that all processes share."""
    window = json.loads(sys.stdin.readline())
    return window["start"], window["stop"]
