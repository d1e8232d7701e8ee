"""A run's journal as its owner reads it: every event, whole, in order, and one past of the run."""

import threading

import numpy as np
import pytest

import steelyard
from steelyard import events, wire
from steelyard.testing import ServerProcess, server
from steelyard.v1 import events_pb2, events_pb2_grpc
from steelyard_server.core import events as core
from steelyard_server.history.journal import Journal
from steelyard_server.history.ops import Put, Table, u64
from steelyard_server.history.store import Store
from steelyard_server.runs.reader import JournalReader
from steelyard_server.runs.spec import parse_spec
from steelyard_server.runs.state import RunState

SCORED = {"method": "scored", "score": "last_loss", "floor": 0.1}
LARGE = 200_000
"""Examples: a signal of each, with its id, is 2.4 MB."""


@pytest.fixture
def client(tmp_path):
    with server(tmp_path) as client:
        client.create_dataset("d", 40)
        yield client


def train(run, steps, *, attempt="a", start_step=None):
    """Trains steps one by one, each loss (id + step) / 8; the batches."""
    batches = []
    with run.join(attempt=attempt, start_step=start_step, prefetch=1, timeout=60) as session:
        for _ in range(steps):
            batch = session.next()
            session.report(batch, (batch.ids + batch.step) / 8)
            session.flush()
            batches.append(batch)
    return batches


def kinds(run, *span):
    return [type(event).__name__ for event in run.events(*span)]


def of_kind(run, kind, *span):
    return [event for event in run.events(*span) if isinstance(event, kind)]


def whole_life(client):
    """A run to which everything happened that can; two policies, growth, retirement, observation."""
    client.set_column("d", "quality", np.arange(40) / 4)
    run = client.create_run("r", dataset="d", batch_size=6, seed=9, staleness=2, draw=SCORED, history_size=3)
    train(run, 5)
    run.bookmark("here", 2)
    run.observe([1, 2], {"loss": [0.5, float("nan")], "correct": [1, 0]}, step=3)
    run.observe([7], [2.25])
    client.append_examples("d", 8)
    client.retire("d", [3, 17])
    run.change_policy(
        draw={**SCORED, "score": "quality", "sampling": "stratified"}, weigh={"method": "importance"}
    )
    train(run, 2)
    run.change_policy(draw={**SCORED, "score": "mean_loss", "sampling": "independent"})
    client.set_column("d", "quality", [5.5], ids=[0])
    with run.join(attempt="b", prefetch=1) as session:
        run.close_step(session.next().step)
    run.delete_bookmark("here")
    train(run, 3, attempt="c")
    return run


def test_every_kind_of_event_comes_with_all_that_it_holds(client):
    run = whole_life(client)
    seen = list(run.events())
    assert [event.record for event in seen] == list(range(len(seen)))
    assert {type(event).__name__ for event in seen} == set(events.__all__) - {"Event", "RunSpec"}
    created = seen[0]
    assert isinstance(created, events.RunCreated)
    assert (created.spec.name, created.spec.seed, created.spec.staleness) == ("r", 9, 2)
    assert (created.spec.batch_size, created.spec.history_size, created.dataset_size) == (6, 3, 40)
    assert created.spec.draw["score"] == "last_loss"
    by_kind = {kind: of_kind(run, kind) for kind in (type(event) for event in seen)}
    assert [one.attempt for one in by_kind[events.AttemptBegan]] == ["a", "b", "c"]
    assert [(one.bookmark, one.step) for one in by_kind[events.Bookmarked]] == [("here", 2), ("here", None)]
    stepped, at_once = by_kind[events.SignalsObserved]
    assert (stepped.step, at_once.step) == (3, None)
    np.testing.assert_array_equal(stepped.ids, [1, 2])
    np.testing.assert_array_equal(stepped.signals["loss"], np.array([0.5, np.nan], np.float32))
    np.testing.assert_array_equal(stepped.signals["correct"], np.array([1, 0], np.float32))
    assert [one.size for one in by_kind[events.DatasetGrown]] == [48]
    np.testing.assert_array_equal(by_kind[events.IdsRetired][0].ids, [3, 17])
    assert [(one.step, one.reason) for one in by_kind[events.StepClosed]] == [(7, "owner")]
    assert [one.draw["score"] for one in by_kind[events.PolicyChanged]] == ["quality", "mean_loss"]
    assert by_kind[events.PolicyChanged][0].weigh["method"] == "importance"
    # The uploaded one, and the folds that the last policy reads, made from the history.
    assert {one.column for one in by_kind[events.ColumnSet]} == {"quality", "mean_loss", "count_loss"}
    for one in by_kind[events.ColumnSet]:
        assert (one.ids.dtype, one.values.dtype, one.ids.shape) == (np.int64, np.float32, one.values.shape)


def test_a_batch_in_the_stream_is_the_batch_that_was_served(client):
    run = whole_life(client)
    drawn = of_kind(run, events.BatchDrawn)
    assert [one.step for one in drawn] == list(range(run.info().next_step))
    for one in drawn:
        assert one.digest == wire.batch_digest(one.step, one.ids)
        served = run.batch(one.step)
        np.testing.assert_array_equal(served.ids, one.ids)
        np.testing.assert_array_equal(served.probability, one.probability)
        assert (served.digest, served.state_version) == (one.digest, one.state_version)


def refolded(stream):
    """Folds the events as the server does; yields each batch served with the one that the fold draws by itself."""
    created = next(stream)
    values = {name: getattr(created.spec, name) for name in events.RunSpec.__dataclass_fields__}
    state = RunState(core.RunCreated(parse_spec(values).model_dump(mode="json"), created.dataset_size))
    for event in stream:
        if isinstance(event, events.BatchDrawn):
            yield event, state.draw()
        state.apply(as_core(event))


def as_core(event):
    match event:
        case events.BatchDrawn():
            return core.BatchDrawn(
                event.step, event.ids, event.probability, event.uniform_probability, event.state_version,
                event.digest, event.draw_state, event.weight,
            )  # fmt: skip
        case events.LossesReported():
            return core.LossesReported(event.step, event.offset, event.signals)
        case events.SignalsObserved():
            return core.SignalsObserved(event.step, event.ids, event.signals)
        case events.StepClosed():
            return core.StepClosed(event.step, event.reason)
        case events.PolicyChanged():
            return core.PolicyChanged(
                {"draw": dict(event.draw), "mix": dict(event.mix), "weigh": dict(event.weigh)}
            )
        case events.ColumnSet():
            return core.ColumnSet(event.column, event.ids, event.values)
        case events.DatasetGrown():
            return core.DatasetGrown(event.size)
        case events.IdsRetired():
            return core.IdsRetired(event.ids)
        case events.AttemptBegan():
            return core.AttemptBegan(event.attempt, event.world_size, event.start_step)
        case events.Bookmarked():
            return core.Bookmarked(event.bookmark, event.step)
    raise AssertionError(event)


def test_whoever_folds_the_events_again_gets_the_same_batches(client):
    run = whole_life(client)
    steps = 0
    for served, again in refolded(run.events()):
        assert (served.step, served.digest, served.state_version) == (
            again.step,
            again.digest,
            again.state_version,
        )
        np.testing.assert_array_equal(served.ids, again.ids)
        if again.probability is not None:
            np.testing.assert_array_equal(served.probability, again.probability)
        steps += 1
    assert steps == run.info().next_step >= 10


def test_a_changed_loss_in_the_events_is_found_by_folding_them(client):
    """That the test before this one can fail."""
    run = client.create_run("r", dataset="d", batch_size=6, staleness=0, draw=SCORED)
    train(run, 8)

    def bent():
        for event in run.events():
            if isinstance(event, events.LossesReported) and event.step == 2:
                losses = event.signals["loss"].copy()
                losses[0] += 100
                event = events.LossesReported(event.record, event.step, event.offset, {"loss": losses})
            yield event

    assert [served.step for served, again in refolded(bent()) if served.digest != again.digest]


def test_a_span_goes_from_one_draw_to_another(client):
    run = client.create_run("r", dataset="d", batch_size=6, staleness=0, draw=SCORED)
    train(run, 4)
    assert kinds(run, 1, 2) == ["BatchDrawn", "LossesReported"]
    assert kinds(run, None, 1) == ["RunCreated", "AttemptBegan", "BatchDrawn", "LossesReported"]
    assert kinds(run, 2, 2) == []
    assert [e.record for e in run.events(3)] == [e.record for e in run.events()][-len(kinds(run, 3)) :]
    with pytest.raises(steelyard.InvalidArgument, match="expected at most to_step, 1; got 2"):
        run.events(2, 1)
    with pytest.raises(steelyard.InvalidArgument, match="from_step: expected an integer"):
        run.events(-1)
    ahead = run.info().next_step
    with pytest.raises(
        steelyard.FailedPrecondition, match=rf"has 0\.\.{ahead - 1}; got {ahead}, which is not"
    ):
        list(run.events(ahead))
    with pytest.raises(steelyard.NotFound, match="no run 'other'"):
        list(steelyard.Run(client, "other").events())


def test_a_fork_begins_with_its_own_creation(client):
    run = client.create_run("r", dataset="d", batch_size=6, staleness=0, draw=SCORED)
    train(run, 4)
    fork = run.fork("f", step=2)
    train(fork, 1)
    first = next(iter(fork.events()))
    assert isinstance(first, events.RunCreated)
    assert (first.record, first.spec.name) == (0, "f")
    assert of_kind(fork, events.BatchDrawn)[0].step == 2
    with pytest.raises(steelyard.FailedPrecondition, match="got 1, which is no longer kept"):
        list(fork.events(1))


def test_what_a_rewind_undid_is_not_in_the_stream(client):
    run = client.create_run("r", dataset="d", batch_size=6, staleness=0, draw=SCORED)
    before = train(run, 6)
    first = list(run.events(None, 3))
    run.rewind(3)
    assert [one.record for one in run.events(None, 3)][: len(first)] == [one.record for one in first]
    assert [one.step for one in of_kind(run, events.BatchDrawn)] == [0, 1, 2]
    again = train(run, 3, attempt="b")
    assert [one.digest for one in of_kind(run, events.BatchDrawn)][:6] == [one.digest for one in before]
    assert [one.digest for one in again] == [one.digest for one in before[3:]]


@pytest.mark.parametrize("durability", ["sync", "interval"])
def test_what_was_acknowledged_is_in_the_stream_also_after_a_restart(tmp_path, durability):
    settings = {"durability": durability, "durability_interval_seconds": 30}
    with server(tmp_path, **settings) as client:
        client.create_dataset("d", 40)
        run = client.create_run("r", dataset="d", batch_size=6, staleness=0, draw=SCORED)
        train(run, 3)
        before = list(run.events())
        assert [one.step for one in before if isinstance(one, events.LossesReported)] == [0, 1, 2]
    with server(tmp_path, **settings) as client:
        after = list(client.run("r").events())
        assert [str(one) for one in after[: len(before)]] == [str(one) for one in before]


# ---- large events ----


@pytest.fixture
def large(client):
    client.create_dataset("large", LARGE)
    return client


def test_an_event_larger_than_a_message_comes_in_parts_and_is_one_again(large, raw_of):
    values = np.arange(LARGE, dtype=np.float32) / 3
    large.set_column("large", "quality", values)
    run = large.create_run(
        "r", dataset="large", batch_size=LARGE, draw={**SCORED, "sampling": "independent"}, staleness=0
    )
    with run.join(attempt="a", prefetch=1) as session:
        batch = session.next()
        session.report(batch, values, signals={"other": -values})
    run.observe(np.arange(LARGE)[::-1], {"loss": values, "extra": values + 1})
    large.retire("large", np.arange(0, LARGE, 2))
    run.change_policy(draw={**SCORED, "score": "quality", "sampling": "independent"})
    by_kind = {type(one): one for one in reversed(list(run.events()))}
    drawn, reported = by_kind[events.BatchDrawn], by_kind[events.LossesReported]
    np.testing.assert_array_equal(drawn.ids, batch.ids)
    np.testing.assert_array_equal(drawn.probability, batch.probability)
    assert drawn.digest == batch.digest
    assert (reported.step, reported.offset) == (0, 0)
    np.testing.assert_array_equal(reported.signals["loss"], values)
    np.testing.assert_array_equal(reported.signals["other"], -values)
    observed = by_kind[events.SignalsObserved]
    np.testing.assert_array_equal(observed.ids, np.arange(LARGE)[::-1])
    np.testing.assert_array_equal(observed.signals["extra"], values + 1)
    np.testing.assert_array_equal(by_kind[events.IdsRetired].ids, np.arange(0, LARGE, 2))
    np.testing.assert_array_equal(by_kind[events.ColumnSet].values, values)
    # On the wire: messages of a bounded size, each event's parts in order, positions going on.
    raw = raw_of(large.address)
    stub = events_pb2_grpc.EventServiceStub(raw._channel)
    answers = list(stub.StreamEvents(events_pb2.StreamEventsRequest(name="r"), timeout=60))
    assert max(answer.ByteSize() for answer in answers) < (1 << 20) + 4096
    parts = [one for answer in answers for one in answer.events]
    assert [one.record for one in parts] == sorted(one.record for one in parts)
    offsets = [one.losses_reported.offset for one in parts if one.HasField("losses_reported")]
    counts = [one.losses_reported.signals[0].values.count for one in parts if one.HasField("losses_reported")]
    assert len(offsets) > 1
    assert offsets == np.cumsum([0, *counts[:-1]]).tolist()


# ---- while the run goes on ----


def grow_long(run, megabytes=24):
    """Makes the journal too long to lie on the wire whole."""
    for _ in range(megabytes // 2):
        run.observe(np.arange(LARGE), np.ones(LARGE))


def test_closing_the_iterator_early_ends_the_reading(large, monkeypatch):
    run = large.create_run("r", dataset="large", batch_size=8, history_size=0)
    grow_long(run)
    readers = []
    real = JournalReader._page

    def counted(reader, *args):
        readers.append(reader)
        return real(reader, *args)

    monkeypatch.setattr(JournalReader, "_page", counted)
    stream = run.events()
    assert isinstance(next(stream), events.RunCreated)
    stream.close()
    threads = {thread.name for thread in threading.enumerate()}
    assert len(list(run.events())) == 13
    assert len(set(readers)) == 2
    assert readers.count(readers[0]) < readers.count(readers[-1])
    assert not any("Timer" in name for name in threads)


def test_a_run_that_goes_back_while_it_is_read_is_aborted_and_not_damaged(large):
    run = large.create_run("r", dataset="large", batch_size=8, history_size=0, staleness=0)
    train(run, 2)
    grow_long(run)
    stream = run.events()
    assert isinstance(next(stream), events.RunCreated)
    run.rewind(1)
    with pytest.raises(steelyard.Aborted, match="run 'r' went back, or its journal was pruned, while it was"):
        list(stream)
    assert [one.step for one in of_kind(run, events.BatchDrawn)] == [0]


def test_a_run_that_is_deleted_while_it_is_read_is_not_found(large):
    run = large.create_run("r", dataset="large", batch_size=8, history_size=0)
    grow_long(run)
    for again in (False, True):
        stream = run.events()
        next(stream)
        large.delete_run("r")
        if not again:
            run = large.create_run("r", dataset="large", batch_size=8, history_size=0)
            grow_long(run)
        with pytest.raises(steelyard.NotFound, match="'r'"):
            list(stream)


def test_a_run_that_is_pruned_while_it_is_read_is_aborted_and_begins_later(tmp_path, eventually):
    # Every checkpoint lies behind step 0, so nothing is pruned before step 3 is drawn.
    with server(tmp_path, checkpoint_journal_bytes=1 << 20) as client:
        client.create_dataset("large", LARGE)
        run = client.create_run(
            "r", dataset="large", batch_size=8, history_size=0, staleness=0, retain_steps=3
        )
        train(run, 1, attempt="first")
        grow_long(run)
        # One that comes when step 4 is drawn, and none before, would leave all that is older in place.
        assert eventually(lambda: run.retention().checkpoints)
        stream = run.events()
        assert isinstance(next(stream), events.RunCreated)
        assert run.info().oldest_step == 0
        for step in range(1, 6):
            train(run, 1, attempt=f"a{step}", start_step=step)
            run.observe(np.arange(LARGE), np.ones(LARGE))
        # The checkpoint is made, and what it makes needless pruned, within a tick of the run.
        assert eventually(lambda: run.info().oldest_step)
        with pytest.raises(steelyard.Aborted, match="was pruned"):
            list(stream)
        assert next(iter(run.events())).record > 0
        with pytest.raises(steelyard.FailedPrecondition, match="got 0, which is no longer kept"):
            list(run.events(0))


def test_two_readers_and_a_trainer_do_not_disturb_each_other(large):
    run = large.create_run("r", dataset="large", batch_size=8, history_size=0, staleness=0, draw=SCORED)
    grow_long(run)
    one, two = run.events(), run.events()
    seen = [[next(one)], [next(two)]]
    batches = train(run, 5)
    assert [batch.step for batch in batches] == [0, 1, 2, 3, 4]
    for so_far, stream in zip(seen, (one, two), strict=True):
        so_far.extend(stream)
    records = [[event.record for event in so_far] for so_far in seen]
    assert records[0] == records[1] == list(range(13))
    assert len(list(run.events())) > 20


def test_a_message_that_does_not_come_is_an_error_in_time(tmp_path):
    with ServerProcess(tmp_path / "s") as process:
        client = process.client(timeout=2.0)
        client.create_dataset("large", LARGE)
        run = client.create_run("r", dataset="large", batch_size=8, history_size=0)
        grow_long(run)
        stream = run.events()
        next(stream)
        process.pause()
        with pytest.raises(steelyard.DeadlineExceeded, match=r"reading the events of run 'r'.*within 2 s"):
            list(stream)
        process.resume()
        assert len(list(run.events())) == 13
        stream = run.events()
        next(stream)
        process.kill()
        with pytest.raises(steelyard.Unavailable, match="reading the events of run 'r'"):
            list(stream)


def test_what_precedes_damage_comes_and_then_the_place_is_told(tmp_path):
    with server(tmp_path) as client:
        client.create_dataset("d", 40)
        run = client.create_run("r", dataset="d", batch_size=6, staleness=0, draw=SCORED)
        train(run, 5)
        bad = next(
            one.record for one in run.events() if isinstance(one, events.LossesReported) and one.step == 2
        )
    store = Store.open(tmp_path)
    key = u64(Journal(store, 2).run_id, bad)
    value = bytearray(store.get(Table.JOURNAL, key) or b"")
    value[-1] ^= 1
    store.commit([Put(Table.JOURNAL, key, bytes(value))])
    store.close()
    with server(tmp_path) as client:
        run = client.run("r")
        seen: list[events.Event] = []
        with pytest.raises(steelyard.DataLoss, match=f"journal record {bad}.*step 2"):
            seen.extend(run.events())
        assert [one.record for one in seen] == list(range(bad))
        assert [one.step for one in run.events(None, 2) if isinstance(one, events.BatchDrawn)] == [0, 1]


def drawn_behind(seen):
    """(what a change of policy says, the step of the next draw in the stream), for each of them."""
    found, changes = [], []
    for event in seen:
        if isinstance(event, events.PolicyChanged):
            changes.append(event.step)
        elif isinstance(event, events.BatchDrawn):
            found += [(step, event.step) for step in changes]
            changes = []
    return found, changes


def test_a_change_of_policy_says_the_step_from_which_it_holds(client):
    run = whole_life(client)
    steps, open_ends = drawn_behind(run.events())
    assert len(steps) == 2
    assert not open_ends
    assert all(said == drawn for said, drawn in steps)
    # As well where the stream begins behind the draw before it, or nothing is drawn behind it.
    first = steps[0][0]
    assert drawn_behind(run.events(first - 1))[0] == steps
    run.change_policy(weigh={"method": "uniform"})
    assert drawn_behind(run.events())[1] == [run.info().next_step]


def test_a_change_before_the_first_draw_and_in_a_fork_says_its_step_too(client):
    client.set_column("d", "quality", np.arange(40) / 4)
    run = client.create_run("r", dataset="d", batch_size=6, staleness=0, draw=SCORED)
    run.change_policy(weigh={"method": "importance"})
    assert drawn_behind(run.events()) == ([], [0])
    train(run, 5)
    assert drawn_behind(run.events())[0] == [(0, 0)]
    fork = run.fork("f", step=3)
    fork.change_policy(weigh={"method": "uniform"})
    assert drawn_behind(fork.events()) == ([], [3])
    train(fork, 2)
    assert drawn_behind(fork.events())[0] == [(3, 3)]


def test_behind_a_hole_a_change_says_its_step(tmp_path):
    with server(tmp_path) as client:
        client.create_dataset("d", 40)
        run = client.create_run("r", dataset="d", batch_size=6, staleness=0, draw=SCORED, retain_steps=1)
        train(run, 12)
        run.change_policy(weigh={"method": "importance"})
        train(run, 3, attempt="b")
        (said, drawn), *_ = drawn_behind(run.events())[0]
        assert said == drawn > 0
