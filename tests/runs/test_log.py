"""A run on disk: what retention keeps can be returned to, to the last bit of it, and the rest is gone."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard_server.core.events import (
    AttemptBegan,
    BatchDrawn,
    Bookmarked,
    DatasetGrown,
    Event,
    IdsRetired,
    LossesReported,
    RunCreated,
    SignalsObserved,
    StepClosed,
)
from steelyard_server.history.codec import encode
from steelyard_server.history.errors import RecordDamaged
from steelyard_server.history.ops import Delete, Put, Table, u64
from steelyard_server.history.store import Store
from steelyard_server.runs import log as log_module
from steelyard_server.runs import snapshot
from steelyard_server.runs import spec as spec_module
from steelyard_server.runs.changes import outliving
from steelyard_server.runs.log import Past, RunLog
from steelyard_server.runs.spec import RunSpec, parse_spec
from steelyard_server.runs.state import HistoryEntry, RunState

BATCH = 4
SIZE = 40
SCORED_BY_MEAN = {"method": "scored", "score": "mean_loss"}
K = 3
"""Entries of an example's history."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path)
    yield store
    store.close()


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> int:
    """Steps whose reports are taken: few, so that a short run has left behind what it may forget."""
    monkeypatch.setattr(spec_module, "LEAST_REPORT_WINDOW", 12)
    return 12


def spec(**fields: Any) -> RunSpec:
    values = {"name": "r", "dataset": "d", "batch_size": BATCH, "draw": {"method": "scored"}, "staleness": 0}
    return parse_spec({**values, "weigh": {"method": "uniform"}, "history_size": K, **fields})


def losses(drawn: BatchDrawn) -> LossesReported:
    return LossesReported(drawn.step, 0, {"loss": ((drawn.ids + drawn.step) % 7 + 1).astype(np.float32)})


class Recorded:
    """A run with its log. `late` steps pass between a draw and its report."""

    def __init__(self, store: Store, run_id: int, made: RunSpec, late: int = 0) -> None:
        self.store, self.run_id, self.late = store, run_id, late
        self._log = RunLog(store, run_id, K)
        created = RunCreated(made.model_dump(mode="json"), SIZE)
        self.state, self._waiting = self._log.create(created)
        self.owed: list[BatchDrawn] = []

    @property
    def log(self) -> RunLog:
        """The log, when all that was written is durable."""
        if self._waiting:
            self.store.commit(self._waiting)
            self._waiting = []
        return self._log

    def write(self, *events: Event) -> None:
        for event in events:
            self.state.apply(event)
        self._waiting += self._log.append(events)

    def train(self, steps: int) -> list[list[int]]:
        """Draws `steps` steps and reports what is due; the ids of each."""
        served, events = [], []
        for _ in range(steps):
            drawn = self.state.draw()
            self.owed.append(drawn)
            events.append(self._apply(drawn))
            served.append(drawn.ids.tolist())
            while len(self.owed) > self.late:
                events.append(self._apply(losses(self.owed.pop(0))))
        self._waiting += self._log.append(events)
        return served

    def _apply(self, event: Event) -> Event:
        self.state.apply(event)
        return event

    def checkpoint(self) -> None:
        frozen = self.log.freeze(self.state)
        frozen.begin(self.state)
        self.store.commit([*self.log.loose(frozen), self.log.row(frozen)])
        frozen.end(self.state, saved=True)
        self.log.saved_seq = frozen.seq

    def prune(self) -> None:
        pruning = self.log.pruning(self.state)
        if pruning is not None:
            self.store.commit([*pruning.rows, *self.log.unread(pruning)])

    def restart(self) -> None:
        assert self.log is self._log
        self._log = RunLog(self.store, self.run_id, K)
        self.state = self._log.load()

    def rewind(self, step: int, token: str = "") -> None:
        past = self.log.past(step)
        events = [*outliving(past.state, self.state), AttemptBegan(token, 1, step)]
        for event in events:
            past.state.apply(event)
        self.store.commit(self.log.rewind(past, events))
        self.state = past.state
        self.owed = []

    def records(self) -> int:
        assert self.log is self._log
        return len(self.store.keys(Table.JOURNAL, u64(self.run_id), u64(self.run_id + 1)))

    def journal_bytes(self) -> int:
        assert self.log is self._log
        rows = self.store.scan(Table.JOURNAL, u64(self.run_id), u64(self.run_id + 1))
        return sum(len(value) for _, value in rows)

    def returnable(self) -> list[int]:
        return [step for step in range(self.state.next_step + 1) if self.log.returns_to(step, self.state)]


def facts(state: RunState) -> tuple[Any, ...]:
    """The state as values that compare, but for how much of its past the run keeps."""
    saved = snapshot.take(state)
    return (
        {**saved.meta, "spec": {**saved.meta["spec"], "retain_steps": None}},
        {name: array.tolist() for name, array in saved.blobs.items()},
        {name: array.tobytes() for name, array in saved.columns.items()},
    )


def past_facts(log: RunLog, past: Past) -> tuple[Any, ...]:
    """Everything that `past` says; its history is what is stored as of then and what the state has not saved."""
    ids = np.arange(past.state.examples.size, dtype=np.int64)
    counts, steps, values = log._history.read(ids, log._checkpoints.newest_seq(past.cut))
    ends = np.cumsum(counts)
    rows = [
        list(zip(steps[end - n : end].tolist(), values[end - n : end].tolist(), strict=True))
        for end, n in zip(ends, counts, strict=True)
    ]
    for entry in past.state.unsaved_history:
        for example, loss in zip(entry.ids.tolist(), entry.losses.tolist(), strict=True):
            rows[example].append((entry.step, loss))
    survivors = [encode(event) for event in past.survivors]
    return facts(past.state), past.cut, survivors, [row[-K:] for row in rows]


def test_the_oldest_retained_step_can_be_returned_to_where_nothing_before_it_is_left(store: Store) -> None:
    run = Recorded(store, 1, spec(retain_steps=5))
    run.train(10)
    run.checkpoint()
    after = run.train(5)
    run.prune()
    log = run.log
    assert log.oldest_step() == 10
    assert log.journal.first_seq() == log.journal.lowest_seq() == log.journal.seq_of_step(10)
    run.rewind(10, "again")
    run.restart()
    assert run.state.next_step == 10
    assert run.train(5) == after
    events = [event for _, event in run.log.journal.read(run.log.journal.first_seq())]
    assert [event.step for event in events if isinstance(event, BatchDrawn)] == list(range(10, 15))


MARKS = {"a": 5, "b": 40, "c": 41, "d": 72}
CHECKPOINTS = 7
"""Steps from one to the next."""


def long_run(store: Store, run_id: int, *, retain: int, staleness: int = 0, late: int = 0) -> Recorded:
    """120 steps with bookmarks, checkpoints and prunes on the way."""
    run = Recorded(store, run_id, spec(retain_steps=retain, staleness=staleness), late)
    for step in range(120):
        run.train(1)
        run.write(*(Bookmarked(name, at) for name, at in MARKS.items() if at == step))
        if step % CHECKPOINTS == CHECKPOINTS - 1:
            run.checkpoint()
            run.prune()
    return run


@pytest.mark.parametrize(("staleness", "late"), [(0, 0), (4, 3)])
@pytest.mark.parametrize("restarted", [False, True])
def test_each_bookmark_is_returned_to_from_an_island_as_if_nothing_had_been_pruned(
    store: Store, window: int, staleness: int, late: int, restarted: bool
) -> None:
    whole = long_run(store, 1, retain=1000, staleness=staleness, late=late)
    assert whole.records() == whole.log.journal.next_seq
    run = long_run(store, 2, retain=20, staleness=staleness, late=late)
    if restarted:
        run.restart()
    assert run.log.journal.next_seq == whole.log.journal.next_seq
    oldest = run.log.oldest_step()
    assert oldest == 98
    assert run.returnable() == [5, 40, 41, 72, *range(oldest, 121)]
    for step in run.returnable():
        assert past_facts(run.log, run.log.past(step)) == past_facts(whole.log, whole.log.past(step)), step
    # Of a bookmark the way from its checkpoint and the window; two side by side share theirs. Then the last 20 steps.
    kept = [step for step in range(120) if run.log.journal.drawn(step) is not None]
    assert kept == [*range(5 + window), *range(35, 41 + window), *range(70, 72 + window), *range(98, 120)]
    assert len(run.log._checkpoints.list()) < len(whole.log._checkpoints.list())


@pytest.mark.parametrize("name", MARKS)
def test_a_run_taken_back_to_an_island_goes_on_as_it_did_and_the_lower_ones_stay(
    store: Store, window: int, name: str
) -> None:
    whole = long_run(store, 1, retain=1000, staleness=4, late=3)
    run = long_run(store, 2, retain=20, staleness=4, late=3)
    step = MARKS[name]
    run.write(AttemptBegan("zombie", 1, 120))
    run.rewind(step)
    run.restart()
    assert "zombie" in run.state.attempts.tokens
    assert run.state.bookmarks == {one: at for one, at in MARKS.items() if at <= step}
    whole.rewind(step)
    assert run.train(120 - step) == whole.train(120 - step)
    for array, other in zip(
        run.state.examples.columns.values(), whole.state.examples.columns.values(), strict=True
    ):
        assert array.tobytes() == other.tobytes()
    for lower in (at for at in MARKS.values() if at <= step):
        assert facts(run.log.past(lower).state)[2] == facts(whole.log.past(lower).state)[2]
    run.checkpoint()
    run.prune()
    assert set(run.state.bookmarks.values()) <= set(run.returnable())


def test_a_deleted_bookmark_frees_its_island_and_only_that(store: Store, window: int) -> None:
    run = long_run(store, 1, retain=20)
    sizes = [run.journal_bytes()]
    for name in ("c", "b", "a"):
        costs = {one.name: one.journal_bytes for one in run.log.kept(run.state).bookmarks}
        run.write(Bookmarked(name, None))
        before = run.journal_bytes()
        run.prune()
        sizes.append(run.journal_bytes())
        assert before - sizes[-1] == costs[name], name
        left = set(MARKS.values()) - {MARKS[one] for one in MARKS if one not in run.state.bookmarks}
        assert left <= set(run.returnable())
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    kept = run.log.kept(run.state)
    assert run.log.journal.bytes_from(0) == run.journal_bytes()
    assert kept.journal_bytes + sum(one.journal_bytes for one in kept.bookmarks) == run.journal_bytes()
    assert kept.journal_records == run.records() - sum(
        run.log.journal.piece_end(seq) - seq
        for seq in [run.log.journal.lowest_seq()]
        if run.log.journal.holes
    )
    run.write(Bookmarked("d", None))
    run.prune()
    assert run.log.journal.holes == []
    assert store.get(Table.HOLES, u64(1)) is None
    assert run.records() == run.log.kept(run.state).journal_records


def test_a_bookmark_in_the_middle_of_what_is_retained_costs_nothing_of_its_own(
    store: Store, window: int
) -> None:
    run = long_run(store, 1, retain=1000)
    kept = run.log.kept(run.state)
    assert [(one.name, one.step, one.journal_bytes) for one in kept.bookmarks] == [
        (name, at, 0) for name, at in MARKS.items()
    ]
    assert (kept.oldest_step, kept.journal_records) == (0, run.log.journal.next_seq)
    assert kept.journal_bytes == run.journal_bytes()


def test_a_checkpoint_stays_for_each_bookmark_so_that_going_back_there_replays_little(
    store: Store, window: int
) -> None:
    run = long_run(store, 1, retain=1000)
    at = [step for _, step in run.log._checkpoints.list()]
    assert {35, 70} <= set(at)


@pytest.mark.parametrize("where", ["first", "inside", "last", "index"])
def test_a_record_lost_from_an_island_is_damage_and_not_a_hole(store: Store, window: int, where: str) -> None:
    run = long_run(store, 1, retain=20)
    journal = run.log.journal
    cut = journal.seq_of_step(40)
    assert cut is not None
    lost = {"first": 2 * 35 + 2, "inside": cut - 3, "last": journal.piece_end(cut) - 1}.get(where)
    gone = Delete(Table.STEPS, u64(1, 40)) if lost is None else Delete(Table.JOURNAL, u64(1, lost))
    store.commit([gone])
    step = 41 if where == "last" else 40
    message = "the draw of step 40" if where == "index" else f"journal record {lost}\\b.*: it is missing"
    with pytest.raises(RecordDamaged, match=message):
        run.log.past(step)
    run.log.past(5)
    run.log.past(72)


def test_a_damaged_list_of_holes_is_reported_when_the_run_is_read(store: Store, window: int) -> None:
    run = long_run(store, 1, retain=20)
    row = bytearray(store.get(Table.HOLES, u64(1)) or b"")
    row[-1] ^= 1
    store.commit([Put(Table.HOLES, u64(1), bytes(row))])
    with pytest.raises(RecordDamaged, match="run 1, the list of what is pruned"):
        run.restart()
    store.commit([Delete(Table.HOLES, u64(1))])
    journal = RunLog(store, 1, K).journal
    with pytest.raises(RecordDamaged, match="it is missing"):
        list(journal.read(journal.lowest_seq()))


ACTIONS = [
    *["go_on"] * 8,
    *["bookmark"] * 4,
    *["train", "late", "observe", "close", "unmark", "restart", "rewind", "attempt", "grow", "retire"],
]
"""In shares that make islands common: a run mostly goes on, and is bookmarked on the way."""


class Pair:
    """A run that checkpoints and prunes, and its twin, which replays everything from its first record."""

    def __init__(self, store: Store, run_id: int, staleness: int | str) -> None:
        made = spec(retain_steps=4, staleness=staleness)
        self.store = store
        self.run = Recorded(store, run_id, made)
        self.twin = Recorded(store, run_id + 1, made)
        self.owed: dict[int, list[BatchDrawn]] = {}
        self.serial = 0

    def both(self, act: Callable[[Recorded], object]) -> None:
        act(self.run)
        act(self.twin)

    def write(self, *events: Event) -> None:
        self.both(lambda run: run.write(*events))

    def do(self, action: str, number: int) -> None:
        getattr(self, action)(number)

    def go_on(self, number: int) -> None:
        self.train(number)
        self.run.checkpoint()
        self.run.prune()
        self.check({self.run.log.oldest_step(), self.run.state.next_step, *self.run.state.bookmarks.values()})

    def train(self, number: int) -> None:
        # A draw may need the reports that are late: then all of them come.
        for _ in range(number % 6 + 1):
            if self.run.state.awaited_step() is not None:
                self.late(0)
                self.both(self._report_all)
            self.both(lambda run: run.train(1))

    def _report_all(self, run: Recorded) -> None:
        due, run.owed = run.owed, []
        run.write(*(losses(drawn) for drawn in due if not run.state.steps[drawn.step].closed))
        # Those that nobody will report any more, after an attempt that came to nothing.
        awaited = range(run.state.closed_steps, run.state.next_step)
        run.write(*(StepClosed(step, "owner") for step in awaited if not run.state.steps[step].closed))

    def late(self, number: int) -> None:
        self.run.late = self.twin.late = number % 4

    def observe(self, number: int) -> None:
        back = number % 8
        at = self.run.state.next_step - 1 - back
        ids = np.array([back % SIZE, (back * 7) % SIZE], np.int64)
        if at >= 0:
            self.write(SignalsObserved(at, ids, {"loss": np.array([back, 2.5], np.float32)}))

    def close(self, number: int) -> None:
        step = self.run.state.next_step - 1 - number % 4
        record = self.run.state.steps.get(step)
        if record is not None and not record.closed:
            for run in (self.run, self.twin):
                run.owed = [drawn for drawn in run.owed if drawn.step != step]
            self.write(StepClosed(step, "owner"))

    def bookmark(self, number: int) -> None:
        steps = self.run.returnable()
        self.serial += 1
        self.write(Bookmarked(f"b{self.serial}", steps[number % len(steps)]))

    def unmark(self, number: int) -> None:
        names = sorted(self.run.state.bookmarks)
        if names:
            self.write(Bookmarked(names[number % len(names)], None))

    def restart(self, _: int) -> None:
        owed = self.run.owed
        self.run.restart()
        assert facts(self.run.state)[2] == facts(self.twin.state)[2]
        self.run.owed = owed

    def rewind(self, number: int) -> None:
        steps = self.run.returnable()
        self.both(lambda run: run.rewind(steps[number % len(steps)]))

    def attempt(self, number: int) -> None:
        state = self.run.state
        start = state.closed_steps + number % (state.next_step - state.closed_steps + 1)
        for run in (self.run, self.twin):
            run.owed = [drawn for drawn in run.owed if drawn.step >= start]
        self.serial += 1
        self.write(AttemptBegan(f"t{self.serial}", 1, start))

    def grow(self, number: int) -> None:
        self.write(DatasetGrown(self.run.state.examples.size + number % 5 + 1))

    def retire(self, number: int) -> None:
        self.write(IdsRetired(np.array([number % 10], np.int64)))

    def check(self, steps: Iterable[int]) -> None:
        for step in sorted(steps):
            mine, other = self.run.log.past(step), self.twin.log.past(step)
            assert past_facts(self.run.log, mine) == past_facts(self.twin.log, other), step
            assert outliving(mine.state, self.run.state) == outliving(other.state, self.twin.state)
        assert self.run.log.journal.bytes_from(0) == self.run.journal_bytes()


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store.open(tmp_path_factory.mktemp("log"))
    yield opened
    opened.close()


run_ids = itertools.count(1, 2)


@settings(max_examples=25, deadline=None)
@given(
    staleness=st.sampled_from([0, 3, "any"]),
    script=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1 << 16)), min_size=10, max_size=50),
)
def test_whatever_is_pruned_every_step_that_may_be_returned_to_is_as_in_a_log_that_forgets_nothing(
    shared_store: Store, staleness: int | str, script: Sequence[tuple[str, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spec_module, "LEAST_REPORT_WINDOW", 4)
        pair = Pair(shared_store, next(run_ids), staleness)
        for action, number in script:
            pair.do(action, number)
        pair.go_on(0)
        pair.check(pair.run.returnable())


def test_losses_that_no_checkpoint_has_are_looked_through_together_however_many_saw_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "_LOSSES_AT_ONCE", 100)
    rng, calls = np.random.default_rng(0), 0
    unsaved = [
        HistoryEntry(step, rng.integers(0, 50, 3).astype(np.uint32), rng.random(3, np.float32))
        for step in range(5000)
    ]
    wanted = [
        [
            (entry.step, float(loss))
            for entry in unsaved
            for one, loss in zip(entry.ids, entry.losses, strict=True)
            if one == example
        ][-4:]
        for example in (49, 3, 77, 3)
    ]

    def count(frame: object, event: str, _: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    log = RunLog(store, 1, 4)
    sys.setprofile(count)
    try:
        found = log.history(np.array([49, 3, 77, 3]), unsaved)
    finally:
        sys.setprofile(None)
    assert found == wanted
    assert calls < 10 * len(unsaved)


def test_the_estimate_of_a_checkpoint_knows_that_chunks_without_values_take_nothing(store: Store) -> None:
    size = 1_000_000
    created = RunCreated(spec(draw=SCORED_BY_MEAN).model_dump(mode="json"), size)
    log = RunLog(store, 1, K)
    state, ops = log.create(created)
    store.commit(ops)
    values = np.ones(10, np.float32)
    for event in (None, SignalsObserved(None, np.arange(10), {"loss": values})):
        if event is not None:
            state.apply(event)
        frozen = log.freeze(state)
        estimated, before = log.bytes_of(frozen), store.stats().live_bytes
        store.commit([*log.loose(frozen), log.row(frozen)])
        taken = store.stats().live_bytes - before
        assert taken <= estimated + 8 * 4096
        assert estimated <= 2 * taken + (1 << 16)
        store.commit(log._checkpoints.drop_after(0))
