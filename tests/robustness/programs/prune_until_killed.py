"""Trains a run, bookmarks steps and takes names away, and checkpoints and prunes all the time, until it is killed.

Prints each step once it is durable. What it does at a step follows from the step alone, so whoever reads the store
afterwards knows what must be there: `at_step` is for both.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from steelyard_server.core.events import Bookmarked, Event, LossesReported, RunCreated
from steelyard_server.history.store import Store
from steelyard_server.runs import spec
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.state import RunState

RUN = 1
HISTORY = 3
EXAMPLES = 200
WINDOW = 6

CREATED = RunCreated(
    spec.parse_spec(
        {
            "name": "r",
            "dataset": "d",
            "batch_size": 8,
            "staleness": 2,
            "history_size": HISTORY,
            "retain_steps": 12,
            "draw": {"method": "scored"},
            "weigh": {"method": "uniform"},
        }
    ).model_dump(mode="json"),
    EXAMPLES,
)


def at_step(state: RunState) -> list[Event]:
    """Draws and reports the next step, and names some; the state has taken it all in."""
    step = state.next_step
    drawn = state.draw()
    losses = ((drawn.ids + step) % 7 + 1).astype(np.float32)
    events: list[Event] = [drawn, LossesReported(step, 0, {"loss": losses})]
    if step % 9 == 4:
        events.append(Bookmarked(f"m{step}", step))
    if step % 27 == 22 and f"m{step - 18}" in [*state.bookmarks]:
        events.append(Bookmarked(f"m{step - 18}", None))
    for event in events:
        state.apply(event)
    return events


def checkpoint(store: Store, log: RunLog, state: RunState) -> None:
    frozen = log.freeze(state)
    frozen.begin(state)
    store.commit([log.journal.fence(), *log.loose(frozen), log.row(frozen)])
    frozen.end(state, saved=True)
    log.saved_seq = frozen.seq


def prune(store: Store, log: RunLog, state: RunState) -> None:
    pruning = log.pruning(state)
    if pruning is not None:
        store.commit([*pruning.rows, *log.unread(pruning)])


def main(directory: Path) -> None:
    spec.LEAST_REPORT_WINDOW = WINDOW
    store = Store.open(directory)
    log = RunLog(store, RUN, HISTORY)
    if log.journal.next_seq:
        state = log.load()
    else:
        state, ops = log.create(CREATED)
        store.commit(ops)
    while True:
        step = state.next_step
        store.commit(log.append(at_step(state)))
        print(step, flush=True)
        if step % 4 == 3:
            checkpoint(store, log, state)
        prune(store, log, state)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
