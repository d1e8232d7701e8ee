"""kill -9 while a run is pruned: every bookmark that is left can be returned to, and nothing else is there."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from steelyard_server.history.ops import Table, u64
from steelyard_server.history.store import Store
from steelyard_server.runs import spec
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.state import RunState

PROGRAM = Path(__file__).parent / "programs" / "prune_until_killed.py"
ROUNDS = 12
LEAST_STEPS = 10
"""A kill counts only under load: this many steps of its round were durable before it."""


def loaded_program() -> ModuleType:
    made = importlib.util.spec_from_file_location("prune_until_killed", PROGRAM)
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    return module


def killed_after(directory: Path, delay: float) -> int:
    """Runs the program and kills it; the last step that it said was durable."""
    child = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(directory)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(LEAST_STEPS)]
    time.sleep(delay)
    child.kill()
    lines += child.stdout.read().splitlines(keepends=True)
    child.stdout.close()
    assert child.wait(60) == -9, "it ended by itself"
    return int([line for line in lines if line.endswith(b"\n")][-1])


class Twin:
    """The same run in memory: its columns whenever a step was next, and the bookmarks that there are then."""

    def __init__(self, program: ModuleType) -> None:
        self._program = program
        self._state = RunState(program.CREATED)
        self._columns: list[dict[str, bytes]] = []
        self._bookmarks: list[dict[str, int]] = []

    def at(self, step: int) -> tuple[dict[str, bytes], dict[str, int]]:
        while len(self._columns) <= step:
            self._columns.append(columns(self._state))
            self._bookmarks.append(dict(self._state.bookmarks))
            self._program.at_step(self._state)
        return self._columns[step], self._bookmarks[step]


def columns(state: RunState) -> dict[str, bytes]:
    return {name: values.tobytes() for name, values in state.examples.columns.items()}


def test_a_run_that_is_killed_while_it_is_pruned_returns_to_each_of_its_bookmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = loaded_program()
    monkeypatch.setattr(spec, "LEAST_REPORT_WINDOW", program.WINDOW)
    moments, twin = random.Random(3), Twin(program)
    most_holes = 0
    for _ in range(ROUNDS):
        durable = killed_after(tmp_path, moments.uniform(0, 0.1))
        store = Store.open(tmp_path)
        log = RunLog(store, program.RUN, program.HISTORY)
        state = log.load()
        assert state.next_step > durable
        known, marks = twin.at(state.next_step)
        assert (columns(state), dict(state.bookmarks)) == (known, marks)
        for step in {*marks.values(), log.oldest_step()}:
            past = log.past(step)
            assert (past.state.next_step, columns(past.state)) == (step, twin.at(step)[0]), step
        check_nothing_else_is_kept(store, log, state, program.prune)
        most_holes = max(most_holes, len(log.journal.holes))
        store.close()
    assert most_holes >= 2


def check_nothing_else_is_kept(
    store: Store, log: RunLog, state: RunState, prune: Callable[[Store, RunLog, RunState], None]
) -> None:
    """Every record lies outside the holes, every hole is empty, and the index leads to records that are there."""
    prune(store, log, state)
    holes = log.journal.holes
    rows = store.keys(Table.JOURNAL, u64(log.journal.run_id), u64(log.journal.run_id + 1))
    there = {int.from_bytes(key[8:], "big") for key in rows}
    gone = {seq for first, stop in [(0, log.journal.lowest_seq()), *holes] for seq in range(first, stop)}
    assert there == set(range(log.journal.next_seq)) - gone
    index: list[tuple[Any, Any]] = store.scan(
        Table.STEPS, u64(log.journal.run_id), u64(log.journal.run_id + 1)
    )
    assert {int.from_bytes(value, "big") for _, value in index} <= there
