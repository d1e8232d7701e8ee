"""Opens a data directory as the server would after a power cut, and says what it finds.

inspector.py: reads a directory a line, writes one JSON object a line. LMDB may kill whoever reads a damaged file, so
this is a process of its own, and its death is a finding.

    rows        a hash of all that is stored, before anything was added
    events      the journal's, without attempts, each verified against the chain; null where there is no run
    generation  of the losses that the run is being trained with
    next        the batches that the run serves when it is joined now: [step, digest], the second after a report
    error       the traceback where opening, verifying or serving failed

That the state that the server recovers is the fold of the journal is checked here. What becomes of the same rows is not
asked twice: of a directory with rows that were seen before, it is seen that they can all be read and written to.
"""

from __future__ import annotations

import hashlib
import json
import queue
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

import steelyard  # noqa: F401 -- before gRPC
from steelyard_server.core.events import AttemptBegan, Event, RunCreated
from steelyard_server.history.journal import Journal
from steelyard_server.history.ops import Put, Table
from steelyard_server.history.registry import Registry
from steelyard_server.history.store import Store
from steelyard_server.runs.catalog import Catalog
from steelyard_server.runs.journaled import CheckpointRule
from steelyard_server.runs.messages import Acknowledgement, Join, Outgoing, Report, Slice
from steelyard_server.runs.run import Run
from steelyard_server.runs.state import RunState
from tests.robustness.power.life import SIZE, loss, shown

_SECONDS = 30.0


class Trainer:
    """A rank's end of a stream, without the wire."""

    def __init__(self) -> None:
        self._messages: queue.Queue[Outgoing | Exception | None] = queue.Queue()

    def send(self, message: Outgoing) -> None:
        self._messages.put(message)

    def end(self, error: Exception | None) -> None:
        self._messages.put(error)

    def await_one(self, kind: type[Any]) -> Any:
        """The next message of that kind; queue.Empty where none comes in time."""
        while True:
            message = self._messages.get(timeout=_SECONDS)
            if isinstance(message, Exception):
                raise message
            if isinstance(message, kind):
                return message


def inspect(directory: Path, seen: dict[str, dict[str, Any]]) -> dict[str, Any]:
    store = Store.open(directory, map_size=1 << 20)
    try:
        found = rows(store)
        if found in seen:
            # Takes pages that were freed, and frees some.
            store.commit([Put(Table.META, b"after the cut", bytes(3 * 4096))])
        else:
            seen[found] = {"rows": found, **_of_new_rows(store)}
        return seen[found]
    finally:
        store.close()


def _of_new_rows(store: Store) -> dict[str, Any]:
    registry = Registry(store)
    runs = registry.runs()
    if not runs:
        return {"events": None, "generation": 0, "next": []}
    # The life is taken back before the dataset grows, and only then.
    generation = int(registry.datasets()[0].size > SIZE)
    events = [event for _, event in Journal(store, runs[0].run_id).read(0)]
    catalog = Catalog(store, CheckpointRule(), 16 << 20)
    try:
        run = catalog.run("r")
        run.ask(lambda state: check_is_fold(state, events))
        return {
            "events": [shown(event) for event in events if not isinstance(event, AttemptBegan)],
            "generation": generation,
            "next": serve(run, generation),
        }
    finally:
        catalog.close(time.monotonic() + _SECONDS)


def rows(store: Store) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for table in Table:
        for key, value in store.scan(table, b"\0", b"\xff" * 256):
            hashed.update(repr((table.value, key, len(value))).encode() + value)
    return hashed.hexdigest()


def check_is_fold(state: RunState, events: list[Event]) -> None:
    state.check()
    created = events[0]
    assert isinstance(created, RunCreated), created
    folded = RunState(created)
    for event in events[1:]:
        folded.apply(event)
    # A growth that the run had not been told before the cut, it was told when it was loaded.
    for name, column in folded.examples.columns.items():
        recovered = state.examples.columns[name]
        assert np.array_equal(recovered[: len(column)], column, equal_nan=True), f"column {name} is no fold"
    assert (state.next_step, state.closed_steps) == (folded.next_step, folded.closed_steps)
    assert state.bookmarks == folded.bookmarks


def serve(run: Run, generation: int) -> list[tuple[int, str]]:
    trainer = Trainer()
    run.join(Join(0, 1, 0, "after the cut", "after the cut", None, None, 1), trainer)
    first = trainer.await_one(Slice).drawn
    losses = loss(first.ids, first.step, generation)
    run.report(trainer, Report(first.step, 0, first.digest, {"loss": losses}, False))
    trainer.await_one(Acknowledgement)
    run.credit(trainer, 1)
    second = trainer.await_one(Slice).drawn
    run.leave(trainer)
    return [(batch.step, f"{batch.digest:016x}") for batch in (first, second)]


def main() -> None:
    seen: dict[str, dict[str, Any]] = {}
    for line in sys.stdin:
        try:
            found = inspect(Path(line.rstrip("\n")), seen)
        except BaseException:
            found = {"error": traceback.format_exc()}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
