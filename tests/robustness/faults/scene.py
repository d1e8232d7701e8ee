"""A server under load: the daemon, a trainer that takes and reports batches as fast as it can, and the model of both.

A round: `load()` counts the load until it is what a fault has to meet; then the fault; then `settle()` has the trainer
stop where all is acknowledged, and compares everything that it was served, and the run, with the model.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import steelyard
from tests.robustness.faults.daemon import Daemon
from tests.robustness.faults.model import Model
from tests.robustness.faults.outcome import ROOT
from tests.robustness.faults.registry import Bench, Broken
from tests.robustness.faults.told import Listener, Told

BATCH = 1024
FIELDS: dict[str, Any] = {
    "batch_size": BATCH,
    "staleness": 8,
    "draw": {"method": "scored", "floor": 0.1},
    "history_size": 2,
}
WAIT_SECONDS = 150.0
_COUNTED_SECONDS = 0.5
_PATIENCE_SECONDS = 6.0
"""How long the least load is waited for: a machine that others use gives what it can, and the score says how much."""


class Load:
    """The trainer's process."""

    def __init__(
        self, address: str, run: str, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """`environment` is added to the process's: by what it is known to the server."""
        self._told, self.log = folder / f"told.{run}", folder / f"trains.{run}.log"
        self._listener = Listener(self._told)
        self.told: list[Told] = []
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.robustness.faults.programs.trains",
                    address,
                    run,
                    str(self._told),
                ],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={
                    **os.environ,
                    **(environment or {}),
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                },
            )
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._hear, daemon=True).start()
        self.await_word("joined")

    def _hear(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(line.strip())
        self._said.put(None)

    def await_word(self, word: str) -> str:
        """The rest of the line that begins with it. Broken where the trainer ends, or says nothing."""
        try:
            said = self._said.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            raise Broken(
                f"the trainer did not say {word!r} within {WAIT_SECONDS:g} s\n{self.words()}"
            ) from None
        if said is None or not said.startswith(word):
            raise Broken(f"a trainer that retries ended where {word!r} was awaited\n{self.words()}")
        return said[len(word) :].strip()

    def new(self) -> list[Told]:
        """What it was told since the last time."""
        found = self._listener.new()
        self.told += found
        if not found and self._process.poll() is not None:
            raise Broken(f"a trainer that retries ended with status {self._process.poll()}\n{self.words()}")
        return found

    def hold(self) -> int:
        """It stops; the first step that it has not reported. All before it is acknowledged."""
        self._say("hold")
        return int(self.await_word("held"))

    def go(self) -> None:
        self._say("go")

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Broken(f"a trainer that retries has ended\n{self.words()}") from None

    def words(self) -> str:
        return self.log.read_bytes()[-3000:].decode(errors="replace").strip()

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self) -> None:
        self._process.kill()
        self._process.wait(30)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Scene:
    """A server with one run, trained. As a context manager: begun at the start, and nothing is left at the end."""

    def __init__(self, bench: Bench, folder: Path | None = None, fields: Any = None, **settings: Any) -> None:
        """`folder` is where the server keeps its data; by default in the bench's. `fields` are added to the run's."""
        self.bench = bench
        self.server = Daemon(folder or bench.folder / "server", grace_seconds=30, **settings)
        self._fields = {**FIELDS, **(fields or {})}
        self.model = Model("r", self._fields, bench.size)
        self._held = False
        self._checked = 0
        self.client: steelyard.Client
        self.trainer: Load

    def __enter__(self) -> Self:
        try:
            self.begin()
        except BaseException:
            self.end()
            raise
        return self

    def begin(self) -> None:
        self.server.start()
        self.client = steelyard.connect(self.server.address, credentials=self.owner(), timeout=60)
        self.client.create_dataset("d", self.bench.size)
        self.client.create_run("r", dataset="d", **self._fields)
        self.trainer = self.trained()

    def owner(self) -> steelyard.Credentials | None:
        """Of whoever made the run, and reads it."""
        return None

    def trained(self) -> Load:
        """The trainer, which has joined."""
        return Load(self.server.address, "r", self.bench.folder)

    @property
    def run(self) -> steelyard.Run:
        return steelyard.Run(self.client, "r")

    def replace(self, trainer: Load) -> None:
        """Another one trains in place of the one that has ended."""
        self.trainer, self._held, self._checked = trainer, False, 0

    def load(self) -> float:
        """Lets the trainer go on until it had the least load for half a second, and the batches a second of that: the
        greatest that there was in six seconds where this machine gives no more."""
        if self._held:
            self.trainer.go()
            self._held = False
        self.await_batch()
        best, began = 0.0, time.monotonic()
        while best < self.bench.least_load and time.monotonic() < began + _PATIENCE_SECONDS:
            self.trainer.new()
            before, since = len(self.trainer.told), time.monotonic()
            time.sleep(_COUNTED_SECONDS)
            self.trainer.new()
            best = max(best, (len(self.trainer.told) - before) / (time.monotonic() - since))
        if best < self.bench.least_load / 10:
            raise Broken(
                f"the load was {best:.0f} batches a second before any fault: nothing would be tested"
            )
        return best

    def await_batch(self, after: float = 0.0, seconds: float = WAIT_SECONDS) -> Told:
        """The first batch that came after that moment (by default: after this call). Broken where none comes."""
        after = after or time.monotonic()
        deadline, seen = time.monotonic() + seconds, len(self.trainer.told)
        while True:
            self.trainer.new()
            for one in self.trainer.told[seen:]:
                if one.at > after:
                    return one
            seen = len(self.trainer.told)
            if time.monotonic() > deadline:
                raise Broken(f"no batch came within {seconds:g} s\n{self.server.words()}")
            time.sleep(0.005)

    def settle(self) -> None:
        """Has the trainer stop and compares all with the model. `load` goes on."""
        held = self.trainer.hold()
        self._held = True
        self.trainer.new()
        known = self.trainer.told[-1].acknowledged if self.trainer.told else 0
        if held < known:
            raise Broken(f"the trainer goes on from step {held}, and knew step {known} to be acknowledged")
        self.model.check_told(self.trainer.told[self._checked :])
        self._checked = len(self.trainer.told)
        self.model.check_state(self.run, held)

    def end(self) -> None:
        if hasattr(self, "trainer"):
            self.trainer.end()
        if hasattr(self, "client"):
            self.client.close()
        self.server.end()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
