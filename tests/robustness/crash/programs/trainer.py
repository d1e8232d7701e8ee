"""One rank of a training job that trains several runs side by side: trainer.py PARENT JOB_FILE RANK

It says what it does in lines of JSON, each written at once, so that a kill -9 loses none that it acted on:

    ["joined", run, step]
    ["batch", run, {step, offset, ids, probability, weight, version, digest, batch_size}]
    ["weights", run, step, offset, weights]         what report() returned, where the rule reads losses
    ["end", run, how, message]                      how: finished, aborted, or failed

Every few steps all its reports are acknowledged and it marks the step; it waits for the marks of the other ranks, so
that none is far ahead, and rank 0 writes the step that all have marked: the checkpoint that a next attempt starts from.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import steelyard
from steelyard.errors import Aborted, AlreadyExists
from tests.robustness.crash.losses import losses_of
from tests.robustness.crash.programs.die_with_parent import die_with_parent

PATIENCE = 120.0
SEAT_PATIENCE = 30.0
"""A kill is heard of by the server as soon as the kernel has closed the connection; a stopped one's is held longer."""
MARK_EVERY = 4


class Trainer:
    """One run's part of this rank."""

    def __init__(self, job: dict[str, Any], name: str, rank: int, out: int) -> None:
        self._folder = Path(job["folder"])
        self._job, self._name, self._rank, self._out = job, name, rank, out
        self._world: int = job["runs"][name]["world"]
        self._start: int = job["runs"][name]["start"]
        self._reads_losses: bool = job["runs"][name]["reads_losses"]
        self._attempt: int = job["attempt"]
        self._address: str = job["address"]

    def train(self) -> None:
        try:
            with self._join() as session:
                self._say("joined", session.start_step)
                self._loop(session)
        except Aborted as error:
            self._say("end", "aborted", str(error))
        except BaseException:
            self._say("end", "failed", traceback.format_exc())
        else:
            self._say("end", "finished", "")

    def _join(self) -> steelyard.Session:
        """Takes the seat; where it is held by the process that was killed in its place, soon."""
        run = steelyard.Run(steelyard.connect(self._address, timeout=PATIENCE), self._name)
        deadline = time.monotonic() + SEAT_PATIENCE
        while True:
            try:
                return run.join(
                    self._rank,
                    self._world,
                    self._start,
                    f"attempt {self._attempt}",
                    timeout=PATIENCE,
                    reconnect_timeout=PATIENCE,
                )
            except AlreadyExists:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _loop(self, session: steelyard.Session) -> None:
        while not self._is_over(session.step):
            batch = session.next()
            self._say_batch(batch)
            moods = Random(f"{self._job['seed']} {self._name} {batch.step} {self._rank}")
            weights = self._report(session, batch, moods.random())
            if self._reads_losses and len(batch):
                self._say("weights", batch.step, batch.offset, weights.tolist())
            time.sleep(moods.uniform(0, self._job["pace"]))
            if (batch.step + 1) % MARK_EVERY == 0:
                self._mark(session)
        self._mark(session)

    def _report(self, session: steelyard.Session, batch: steelyard.Batch, mood: float) -> Any:
        """Reports the slice: at once, in two parts and the last first, or twice."""
        losses = losses_of(self._name, self._attempt, batch.step, batch.ids)
        half = len(losses) // 2
        if mood < 0.15 and half:
            last = session.report_async(batch, losses[half:], offset=half)
            first = session.report_async(batch, losses[:half], offset=0)
            return np.concatenate([first.result(), last.result()])
        weights = session.report(batch, losses)
        if mood > 0.85:
            session.report_raw(batch, losses)
        return weights

    def _is_over(self, step: int) -> bool:
        try:
            stop: dict[str, int] = json.loads((self._folder / "stop").read_text())
        except FileNotFoundError:
            return False
        return step >= stop[self._name]

    def _mark(self, session: steelyard.Session) -> None:
        session.flush()
        mine = self._folder / f"mark.{self._name}.{self._rank}"
        _write(mine, session.step)
        deadline = time.monotonic() + PATIENCE
        while (least := self._least_mark()) < session.step - MARK_EVERY:
            session.flush()  # raises what has ended the session
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self._name}: rank {self._rank} marked step {session.step}, another only {least}"
                )
            time.sleep(0.01)
        if self._rank == 0:
            _write(self._folder / f"checkpoint.{self._name}", least)

    def _least_mark(self) -> int:
        marks = [self._folder / f"mark.{self._name}.{rank}" for rank in range(self._world)]
        return min(int(mark.read_text()) if mark.exists() else self._start for mark in marks)

    def _say_batch(self, batch: steelyard.Batch) -> None:
        values = {
            "step": batch.step,
            "offset": batch.offset,
            "ids": batch.ids.tolist(),
            "probability": batch.probability.tolist(),
            "weight": batch.weight.tolist(),
            "version": batch.state_version,
            "digest": batch.digest,
            "batch_size": batch.batch_size,
        }
        self._say("batch", values)

    def _say(self, kind: str, *values: Any) -> None:
        os.write(self._out, (json.dumps([kind, self._name, *values]) + "\n").encode())


def _write(path: Path, step: int) -> None:
    """Whole or not at all. The names of two ranks never meet."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(str(step))
    new.replace(path)


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    job, rank = json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[3])
    log = Path(job["folder"]) / f"rank.{rank}"
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    trainers = [Trainer(job, name, rank, out) for name, run in job["runs"].items() if rank < run["world"]]
    threads = [threading.Thread(target=one.train, name=f"trainer of {one._name}") for one in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
