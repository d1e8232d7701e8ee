"""The life of a run that the tests of this folder disturb, and how a disturbed one is compared with a calm one.

One process holds the server and the trainer. What a caller of the product was told goes to a file as it is told, so
that it outlives a kill: a batch served, a report acknowledged, a call that returned. Whatever the disturbance, a later
process goes on where that file ends, and the run must come out the same.

Staleness is 0, so the journal of a calm life has one order: each draw needs the report before it. A stage of training
ends when the batch after its last step was served too; no draw is then left to chance.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import steelyard
from steelyard_server.core.events import AttemptBegan, BatchDrawn, Event, LossesReported
from steelyard_server.history.journal import Journal
from steelyard_server.history.registry import Registry
from steelyard_server.history.store import Store

Durability = Literal["sync", "interval"]

SIZE = 20_000
GROWN = 500
BATCH = 8000
"""Big enough that this short life fills the first map and makes the checkpoints that a long one makes."""
SEED = 11
MARK = 3
INTERVAL = 0.2
"""Seconds between two commits under durability interval."""
DRAW = {"method": "scored", "score": "last_loss", "transform": "power", "alpha": 1.0, "floor": 0.1}
_PATIENCE = 60.0

Stage = tuple[str, int, int]
"""What, the generation of the losses, and the step to stop before."""

STAGES: tuple[Stage, ...] = (
    ("create", 0, 0),
    ("train", 0, 5),
    ("bookmark", 0, 0),
    ("train", 0, 7),
    ("rewind", 0, 0),
    ("grow", 0, 0),
    ("train", 1, 6),
    ("train", 1, 10),
)
FIRST, SECOND, THIRD = (0, 3), (3, 7), (7, 8)
"""Three lives: the first and the third end in good order, the second is cut off."""
ALL = (0, len(STAGES))


class BrokenPromiseError(AssertionError):
    """A promise that did not hold."""


class Notes:
    """What callers were told, a line each, in a file that outlives the process."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def add(self, *words: object) -> None:
        os.write(self._descriptor, (" ".join(map(str, words)) + "\n").encode("ascii"))


def read_notes(path: Path) -> list[list[str]]:
    return [line.split(" ") for line in path.read_text("ascii").splitlines()] if path.exists() else []


def loss(ids: npt.NDArray[np.int64], step: int, generation: int) -> npt.NDArray[np.float32]:
    """Of whoever trains a step, however often: the same, until the run is taken back."""
    return (1 + (ids * 7 + step * 31 + generation * 13) % 97 / 16).astype(np.float32)


def acknowledged(notes: Sequence[Sequence[str]], generation: int) -> int:
    """The last step whose report was acknowledged; -1 where none was."""
    return max(
        (int(note[2]) for note in notes if note[0] == "acked" and int(note[1]) == generation), default=-1
    )


class Life:
    """Goes through stages of the run in `directory`, skipping those that the notes say are done.

    Where `patient`, what the server calls unavailable is tried again, as an owner would.
    """

    def __init__(
        self, directory: Path, notes: Path, durability: Durability, *, patient: bool = False
    ) -> None:
        self._directory = directory
        self._known = read_notes(notes)
        self._notes = Notes(notes)
        self._durability = durability
        self._patient = patient

    def open(self) -> steelyard.Client:
        return self._tried(
            lambda: steelyard.local(
                self._directory,
                durability=self._durability,
                durability_interval_seconds=INTERVAL,
                map_size_bytes=1 << 20,
                checkpoint_journal_bytes=1 << 20,
                log_level="error",
            )
        )

    def go(self, client: steelyard.Client, first: int, stop: int) -> None:
        done = {int(note[1]) for note in self._known if note[0] == "done"}
        for number in range(first, stop):
            if number not in done:
                self._notes.add("begun", number)
                self._stage(client, *STAGES[number])
                self._notes.add("done", number)

    def _stage(self, client: steelyard.Client, what: str, generation: int, stop: int) -> None:
        run = steelyard.Run(client, "r")
        match what:
            case "create":
                self._tried(lambda: client.create_dataset("d", SIZE, exist_ok=True))
                self._tried(lambda: create(client))
            case "train":
                self._train(run, generation, stop)
            case "bookmark":
                self._tried(lambda: run.bookmark("mark", MARK))
            case "rewind":
                self._tried(lambda: run.rewind("mark"))
            case "grow":
                self._tried(lambda: client.append_examples("d", GROWN, SIZE))

    def _train(self, run: steelyard.Run, generation: int, stop: int) -> None:
        session = self._tried(lambda: run.join(prefetch=1, timeout=_PATIENCE, reconnect_timeout=_PATIENCE))
        with session:
            last = acknowledged(self._known, generation)
            if session.start_step <= last:
                raise BrokenPromiseError(
                    f"served step {session.start_step} after the report of step {last} was acknowledged"
                )
            while session.step <= stop:
                batch = session.next()
                self._notes.add("served", generation, batch.step, f"{batch.digest:016x}")
                if batch.step < stop:
                    session.report(batch, loss(batch.ids, batch.step, generation))
                    session.flush(_PATIENCE)
                    self._notes.add("acked", generation, batch.step)

    def _tried(self, action: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return action()
            except (steelyard.errors.Unavailable, steelyard.errors.FailedPrecondition) as error:
                if not self._patient or time.monotonic() > deadline:
                    raise
                self._notes.add("refused", type(error).__name__)
                time.sleep(0.02)


def create(client: steelyard.Client) -> steelyard.Run:
    return client.create_run(
        "r", dataset="d", batch_size=BATCH, seed=SEED, staleness=0, draw=DRAW, history_size=3, exist_ok=True
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is left of a run when it is over: its events without the attempts, and what callers can read of it."""

    events: tuple[str, ...]
    readable: str


def outcome(directory: Path, client: steelyard.Client) -> Outcome:
    """Closes the client. BrokenPromiseError where the journal does not verify."""
    run = client.run("r")
    readable = hashlib.blake2b(run.column("last_loss").tobytes())
    readable.update(repr(run.history(range(0, SIZE + GROWN, 37))).encode())
    info, counts = run.info(), run.stats()
    readable.update(
        repr((info.next_step, info.closed_steps, info.dataset_size, dict(info.bookmarks))).encode()
    )
    readable.update(repr(counts.reported_losses).encode())
    client.close()
    return Outcome(tuple(map(shown, journal_of(directory))), readable.hexdigest())


def journal_of(directory: Path) -> list[Event]:
    """Every event but the attempts, whose tokens differ from life to life."""
    store = Store.open(directory)
    try:
        (row,) = Registry(store).runs()
        journal = Journal(store, row.run_id)
        return [event for _, event in journal.read(0) if not isinstance(event, AttemptBegan)]
    finally:
        store.close()


def shown(event: Event) -> str:
    """Short, and equal only where the events are."""
    if isinstance(event, BatchDrawn):
        assert event.probability is not None, "a scored draw has probabilities"
        law = hashlib.blake2b(event.ids.tobytes() + event.probability.tobytes(), digest_size=8).hexdigest()
        return f"drawn {event.step} {event.digest:016x} {law}"
    if isinstance(event, LossesReported):
        losses = hashlib.blake2b(event.signals["loss"].tobytes(), digest_size=8).hexdigest()
        return f"reported {event.step} {event.offset} {losses}"
    return repr(event)


def check_served(notes: Sequence[Sequence[str]], calm: Sequence[Sequence[str]]) -> None:
    """BrokenPromiseError where a batch differs from the calm life's."""
    expected = {(note[1], note[2]): note[3] for note in calm if note[0] == "served"}
    for note in notes:
        if note[0] == "served" and expected[note[1], note[2]] != note[3]:
            raise BrokenPromiseError(
                f"step {note[2]} was {expected[note[1], note[2]]} and is served as {note[3]}"
            )


def to_json(found: Outcome) -> str:
    return json.dumps({"events": found.events, "readable": found.readable})
