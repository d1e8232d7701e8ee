"""Beside the run losses are merged and what is no longer retained is removed: nothing that is read goes, and nobody has
to begin anew for it."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from steelyard_server.core.events import AttemptBegan, LossesReported, RunCreated, SignalsObserved
from steelyard_server.history.errors import StoreFull
from steelyard_server.history.losses import LossHistory
from steelyard_server.history.ops import Delete, Put, Table, prefix_range, u64
from steelyard_server.history.store import Store
from steelyard_server.runs import journaled
from steelyard_server.runs.errors import Unavailable
from steelyard_server.runs.journaled import CheckpointRule, Journaled
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.state import RunState

LONG = 30.0
K = 3
SIZE = 8192
EVERYTHING = np.arange(SIZE)
SAVING, REMOVING = "the checkpoint of run 'r'", "the removal of what run 'r' no longer retains"


class Life:
    """A run on this thread, which hears of what was done beside it by `hear`."""

    def __init__(self, store: Store, state: RunState) -> None:
        self.store = store
        self.lost = 0
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        created = RunCreated(state.spec.model_dump(mode="json"), state.examples.size)
        store.commit(self.log().create(created)[1])
        self.run = Journaled(
            store,
            self.log,
            "r",
            rule=CheckpointRule(journal_bytes=0),
            reconcile=lambda state: [],
            post=self._posted.put,
            on_lost=self._count,
            on_replaced=lambda: None,
        )

    def log(self, run_id: int = 1) -> RunLog:
        return RunLog(self.store, run_id, K)

    def observe(self, ids: npt.NDArray[np.int64], value: float) -> None:
        losses = np.full(len(ids), value, np.float32)
        self.run.write_and_wait([SignalsObserved(None, ids, {"loss": losses})])

    def begin(self) -> None:
        """A checkpoint, or a removal, beside the run."""
        while not self._posted.empty():
            self._posted.get()()
        self.run.checkpoint_if_due()

    def hear(self) -> None:
        self._posted.get(timeout=LONG)()

    def _count(self) -> None:
        self.lost += 1


class Held:
    """A thread of this name stands before its commit number `commits`, from 0, until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, thread: str, commits: int) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._left = commits
        commit = Store.commit

        def held(store: Store, ops: Any, *, frees: bool = False) -> None:
            if threading.current_thread().name == thread:
                if not self._left:
                    self.reached.set()
                    assert self.go_on.wait(LONG)
                self._left -= 1
            commit(store, ops, frees=frees)

        monkeypatch.setattr(Store, "commit", held)


def stored(store: Store, table: Table, run_id: int = 1) -> int:
    return len(store.keys(table, *prefix_range(u64(run_id))))


def saved_at(log: RunLog) -> int:
    log.load()
    return log.saved_seq


@pytest.fixture
def make_life(tmp_path: Path, make_run: Callable[..., RunState]) -> Iterator[Callable[..., Life]]:
    stores: list[Store] = []

    def make(size: int = SIZE, most: int = 1 << 30) -> Life:
        stores.append(Store.open(tmp_path / "store", map_size=most, max_map_size=most))
        state = make_run(size, draw={"method": "shuffle"}, history_size=K)
        return Life(stores[0], state)

    yield make
    for store in stores:
        store.close()


def test_a_run_that_cannot_be_read_while_it_is_still_saved_is_read_when_it_is(
    make_life: Callable[..., Life],
    losses_of: Callable[..., LossesReported],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life = make_life()
    life.observe(EVERYTHING, 1.0)
    held = Held(monkeypatch, SAVING, 0)
    life.run.checkpoint_if_due()
    assert held.reached.wait(LONG)
    with pytest.raises(KeyError):
        life.run.write([losses_of(7, [1.0] * 6)])
    with monkeypatch.context() as impatient:
        impatient.setattr(journaled, "_STOP_SECONDS", 0.05)
        with pytest.raises(Unavailable, match="try again"):
            life.run.state()
    held.go_on.set()
    assert life.run.state().folded_reports == 1


def test_work_for_which_no_thread_can_be_had_is_done_later(
    make_life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journaled, "_RETRY_SECONDS", 0.0)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name in (SAVING, REMOVING):
            raise RuntimeError("can't start new thread")
        start(thread)

    life = make_life()
    life.observe(EVERYTHING, 1.0)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            life.begin()
            life.hear()
            assert not life.run.state().frozen
            # It goes back nevertheless.
            life.run.check_step(0)
        life.begin()
        life.hear()
    assert saved_at(life.log())
    assert life.lost == 0
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        life.observe(EVERYTHING, 2.0)
        life.run.checkpoint()
    assert life.lost == 0


def save(life: Life) -> None:
    life.run.checkpoint_if_due()


def remove(life: Life) -> None:
    life.run.checkpoint_if_due()
    life.hear()
    life.begin()


GOING_BACK: list[tuple[str, Callable[[Life], object], Callable[[Life], object]]] = [
    (SAVING, save, lambda life: life.run.rewind(0, AttemptBegan("", 0, 0))),
    (REMOVING, remove, lambda life: life.run.check_step(0)),
    (SAVING, save, lambda life: life.run.checkpoint()),
]


@pytest.mark.parametrize(("thread", "begin", "wait"), GOING_BACK)
def test_what_was_reported_is_durable_before_a_run_waits_for_what_is_done_beside_it(
    make_life: Callable[..., Life],
    monkeypatch: pytest.MonkeyPatch,
    thread: str,
    begin: Callable[[Life], object],
    wait: Callable[[Life], object],
) -> None:
    life = make_life()
    life.observe(EVERYTHING, 1.0)
    held = Held(monkeypatch, thread, 0)
    begin(life)
    assert held.reached.wait(LONG)
    told = threading.Event()
    life.run.write([life.run.state().draw()]).then(told.set)
    waiting = threading.Thread(target=wait, args=[life])
    waiting.start()
    try:
        assert told.wait(LONG / 3)
    finally:
        held.go_on.set()
        waiting.join(LONG)


def test_what_was_reported_is_durable_before_a_run_that_goes_back_waits_for_a_fork(
    make_life: Callable[..., Life],
) -> None:
    life = make_life()
    life.observe(EVERYTHING, 1.0)
    let_go, told = life.run.hold_past(), threading.Event()
    life.run.write([life.run.state().draw()]).then(told.set)
    going_back = threading.Thread(target=life.run.rewind, args=[0, AttemptBegan("", 0, 0)])
    going_back.start()
    try:
        assert told.wait(LONG / 3)
    finally:
        let_go()
        going_back.join(LONG)


def test_a_fork_that_began_before_losses_were_merged_has_them_all(
    make_life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    life = make_life()
    life.observe(EVERYTHING, 1.0)
    life.run.checkpoint()
    assert stored(life.store, Table.HISTORY) == 0
    life.observe(EVERYTHING, 2.0)
    held = Held(monkeypatch, REMOVING, 1)
    life.begin()
    life.hear()
    life.begin()
    assert held.reached.wait(LONG)
    let_go = life.run.hold_past()
    log = life.log()
    copied = log.copy_history(life.log(2), saved_at(log))
    first = next(copied)
    held.go_on.set()
    life.hear()
    assert stored(life.store, Table.HISTORY), "nothing was merged"
    life.store.commit([first, *copied])
    let_go()
    mine, forks = (LossHistory(life.store, run_id, K).read(EVERYTHING) for run_id in (1, 2))
    assert [part.tolist() for part in forks] == [part.tolist() for part in mine]
    life.begin()
    life.hear()
    assert stored(life.store, Table.SEGMENTS) == 1, "what the fork read is not removed behind it"


def test_losses_for_which_there_is_no_room_are_not_merged_and_the_run_goes_on(
    make_life: Callable[..., Life],
) -> None:
    size, most = 200_000, 7 << 20
    life = make_life(size, most)
    parts = np.array_split(np.arange(size), 8)
    for ids in [*parts, parts[0], parts[1]]:
        life.observe(ids, float(ids[0]))
        life.run.checkpoint()
    assert life.log()._history.merge_is_due(saved_at(life.log()), size)
    assert stored(life.store, Table.HISTORY) == 0
    assert life.lost == 0
    assert life.store.full is None
    ids = np.array([part[-1] for part in parts])
    known = life.run.log.history(ids, life.run.state().unsaved_history)
    assert known == [[(0, float(part[0]))] * (2 if number < 2 else 1) for number, part in enumerate(parts)]


def test_a_merge_is_undone_where_others_fill_the_store_meanwhile(
    make_life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journaled, "_PART_BYTES", 1 << 14)
    life = make_life(most=16 << 20)
    life.observe(EVERYTHING, 1.0)
    life.run.checkpoint()
    life.observe(EVERYTHING, 2.0)
    held = Held(monkeypatch, REMOVING, 3)
    life.begin()
    life.hear()
    life.begin()
    assert held.reached.wait(LONG)
    assert stored(life.store, Table.HISTORY)
    filled = 0
    with contextlib.suppress(StoreFull):
        while True:
            life.store.check_space(0, spare=True)
            life.store.commit([Put(Table.META, b"filler %d" % filled, bytes(1 << 18))])
            filled += 1
    held.go_on.set()
    life.hear()
    assert stored(life.store, Table.HISTORY) == 0
    assert life.lost == 0
    life.store.check_space(0)
    life.store.commit([Delete(Table.META, b"filler %d" % number) for number in range(filled)])
    life.observe(EVERYTHING[:5], 3.0)
    life.begin()
    life.hear()
    life.begin()
    life.hear()
    assert stored(life.store, Table.HISTORY)
    known = life.run.log.history(np.array([0, 7]), life.run.state().unsaved_history)
    assert known == [[(0, 1.0), (0, 2.0), (0, 3.0)], [(0, 1.0), (0, 2.0)]]


def test_going_back_behind_a_merge_removes_its_rows_beside_the_run(make_life: Callable[..., Life]) -> None:
    life = make_life()
    life.observe(EVERYTHING, 1.0)
    life.run.checkpoint()
    life.run.write_and_wait([life.run.state().draw()])
    life.observe(EVERYTHING, 2.0)
    for _ in range(2):
        life.begin()
        life.hear()
    assert stored(life.store, Table.HISTORY)
    life.run.rewind(0, AttemptBegan("", 0, 0))
    life.hear()
    assert stored(life.store, Table.HISTORY) == 0
    known = life.run.log.history(np.array([0, 7]), life.run.state().unsaved_history)
    assert known == [[(0, 1.0)]] * 2
    assert life.lost == 0
