"""What a turn writes goes to the store as one write, in order, and each is told when it is durable."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelyard_server.core.events import LossesReported, RunCreated, SignalsObserved
from steelyard_server.history.store import Store
from steelyard_server.runs import journaled
from steelyard_server.runs.durable import Durable
from steelyard_server.runs.journaled import CheckpointRule, Journaled
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.state import RunState

SIZE = 40


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path)
    yield store
    store.close()


@pytest.fixture
def run(store: Store, make_run: Callable[..., RunState]) -> Journaled:
    return create(store, make_run, lambda call: call())


def create(
    store: Store, make_run: Callable[..., RunState], post: Callable[[Callable[[], None]], object]
) -> Journaled:
    created = RunCreated(make_run(SIZE, draw={"method": "shuffle"}).spec.model_dump(mode="json"), SIZE)
    store.commit(RunLog(store, 1, 8).create(created)[1])
    return Journaled(
        store,
        lambda: RunLog(store, 1, 8),
        "r",
        rule=CheckpointRule(),
        reconcile=lambda state: [],
        post=post,
        on_lost=lambda: None,
        on_replaced=lambda: None,
    )


def drawn(run: Journaled) -> Durable:
    return run.write([run.state().draw()])


def durable_steps(store: Store) -> int:
    return RunLog(store, 1, 8).journal.next_step()


def test_what_is_gathered_is_one_write_and_is_answered_in_its_order(run: Journaled, store: Store) -> None:
    run.state()
    before, told = store.stats().commits, queue.SimpleQueue[int]()
    for step in range(5):
        drawn(run).then(lambda step=step: told.put(step))  # type: ignore[misc]
    assert told.empty()
    assert durable_steps(store) == 0
    run.hand_over()
    assert [told.get(timeout=10) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert store.stats().commits == before + 1
    assert durable_steps(store) == 5


def test_whatever_waits_for_the_disk_writes_what_is_gathered_first(run: Journaled, store: Store) -> None:
    for wait in (run.settle, run.checkpoint, lambda: run.write_and_wait([run.state().draw()])):
        durable = drawn(run)
        wait()
        assert durable.reached
        assert durable_steps(store) == run.state().next_step


def test_an_answer_to_nothing_waits_for_what_was_written_before(run: Journaled) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    drawn(run).then(lambda: told.put("drawn"))
    run.hand_over()
    run.write([]).then(lambda: told.put("nothing"))
    run.hand_over()
    assert [told.get(timeout=10) for _ in range(2)] == ["drawn", "nothing"]


def test_what_need_not_wait_for_the_disk_is_told_of_the_new_state_before_its_record_is_made(
    run: Journaled,
) -> None:
    event, told = run.state().draw(), list[tuple[int, int]]()
    run.write([event], lambda: told.append((run.state().next_step, run.log.journal.next_seq)))
    assert told == [(1, 1)]
    assert run.log.journal.next_seq == 2
    run.write([], lambda: told.append((run.state().next_step, run.log.journal.next_seq)))
    assert told == [(1, 1), (1, 2)]
    run.settle()


def test_an_answer_to_nothing_is_not_given_where_what_was_written_before_was_refused(
    tmp_path: Path, make_run: Callable[..., RunState]
) -> None:
    store = Store.open(tmp_path / "small", map_size=1 << 20, max_map_size=1 << 20)
    heard: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    try:
        run = create(store, make_run, heard.put)
        large = SignalsObserved(None, np.arange(SIZE).repeat(10_000), {"loss": np.ones(400_000, np.float32)})
        run.write([large]).then(lambda: told.put("observed"))
        run.hand_over()
        run.write([]).then(lambda: told.put("observed before"))
        run.hand_over()
        heard.get(timeout=10)()
        store.commit([])
        assert told.empty()
        assert not run.loaded
    finally:
        store.close()


def test_an_event_that_fails_takes_nothing_with_it_that_was_gathered_before(
    run: Journaled, store: Store, losses_of: Callable[..., LossesReported]
) -> None:
    durable = drawn(run)
    with pytest.raises(KeyError):
        run.write([losses_of(7, [1.0] * 6)])
    assert not run.loaded
    run.settle()
    assert durable.reached
    assert run.state().next_step == 1 == durable_steps(store)


def test_much_is_handed_over_before_the_turn_ends(
    run: Journaled, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journaled, "_GATHER_BYTES", 1)
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    drawn(run).then(lambda: told.put(0))
    assert told.get(timeout=10) == 0


def test_who_comes_while_the_others_are_told_is_told_behind_them() -> None:
    durable, told = Durable(), list[int]()
    telling, late = threading.Event(), threading.Event()

    def slow() -> None:
        telling.set()
        assert late.wait(10)
        told.append(1)

    def fails() -> Any:
        raise ValueError("planted")

    for action in (slow, fails, lambda: told.append(2)):
        durable.then(action)
    writer = threading.Thread(target=durable.reach)
    writer.start()
    assert telling.wait(10)
    durable.then(lambda: told.append(3))
    late.set()
    writer.join(10)
    assert told == [1, 2, 3]
    durable.then(lambda: told.append(4))
    assert told == [1, 2, 3, 4]
