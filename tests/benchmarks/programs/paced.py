"""Runs that are trained at a given pace, one thread each; how long each of their steps took, to its acknowledgement."""

from __future__ import annotations

import threading
import time
from argparse import Namespace

import numpy as np

import steelyard
from tests.benchmarks.programs import parent

_FIRST_STEPS = 4
"""Every run has made these before anything is counted."""


class Paced:
    def __init__(self, args: Namespace, name: str) -> None:
        self._args = args
        self._name = name
        self.started = threading.Event()
        self.over = False
        self.error: str | None = None
        self.took: list[tuple[float, float, float]] = []
        """When each step began, by time.monotonic, its seconds, and those of next."""

    def run(self) -> None:
        try:
            self._train()
        except steelyard.SteelyardError as error:
            if not self.over:
                self.error = str(error)
        self.started.set()

    def _train(self) -> None:
        run = steelyard.connect(self._args.address).run(self._name)
        with run.join(prefetch=1, timeout=60) as session:
            losses = np.random.default_rng(0).random(session.batch_size, np.float32)
            due = time.monotonic()
            while not self.over:
                began = time.monotonic()
                batch = session.next()
                taken = time.monotonic()
                session.report_async(batch, losses)
                session.flush()
                self.took.append((began, time.monotonic() - began, taken - began))
                if len(self.took) == _FIRST_STEPS:
                    self.started.set()
                # A step that took too long is not made up for by faster ones.
                due = max(due + 1 / self._args.pace, time.monotonic())
                time.sleep(max(0.0, due - time.monotonic()))


def main() -> None:
    parser = parent.parser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--runs", nargs="+", required=True)
    parser.add_argument("--pace", type=float, required=True, help="steps a second of each run")
    args = parser.parse_args()
    parent.live_for(args.life)
    paced = [Paced(args, name) for name in args.runs]
    threads = [threading.Thread(target=one.run, daemon=True) for one in paced]
    for thread in threads:
        thread.start()
    for one in paced:
        one.started.wait(60)
    parent.say("ready")
    start, stop = parent.hear_window()
    time.sleep(max(0.0, stop - time.monotonic()))
    for one in paced:
        one.over = True
    for thread in threads:
        thread.join(30)
    steps = [step for one in paced for step in one.took if start <= step[0] < stop]
    began, seconds, taken = zip(*steps, strict=True) if steps else ((), (), ())
    errors = [one.error for one in paced if one.error]
    parent.say({"began": began, "seconds": seconds, "next": taken, "errors": errors})


if __name__ == "__main__":
    main()
