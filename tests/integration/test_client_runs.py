"""Runs through the client, against a real server: asking, telling and moving."""

import pickle

import numpy as np
import pytest

import steelyard
import steelyard.run
from steelyard.testing import server

SCORED = {"method": "scored", "score": "last_loss", "floor": 0.1}


@pytest.fixture
def client(tmp_path):
    with server(tmp_path) as client:
        client.create_dataset("d", 200)
        yield client


def train(run, steps, *, start_step=None):
    """Trains steps with loss = id / 100 and returns the batches."""
    with run.join(start_step=start_step) as session:
        batches = []
        for _ in range(steps):
            batch = session.next()
            session.report(batch, batch.ids / 100)
            batches.append(batch)
        return batches


def test_a_run_says_how_it_was_made(client):
    run = client.create_run(
        "r", dataset="d", batch_size=32, seed=7, staleness="any", draw=SCORED, weigh={"method": "importance"},
        on_nonfinite="reject", report_timeout=5.5, history_size=3, retain_steps=50,
    )  # fmt: skip
    info = client.run("r").info()
    assert info == run.info() == client.list_runs()[0]
    assert (info.name, info.dataset, info.batch_size, info.seed) == ("r", "d", 32, 7)
    assert (info.staleness, info.on_nonfinite, info.report_timeout) == ("any", "reject", 5.5)
    assert (info.history_size, info.retain_steps, info.dataset_size) == (3, 50, 200)
    assert info.draw["floor"] == 0.1
    assert info.weigh["method"] == "importance"
    assert (info.next_step, info.closed_steps, info.parent, info.bookmarks) == (0, 0, None, {})


def test_the_defaults_are_shuffle_and_uniform_with_staleness_16(client):
    info = client.create_run("r", dataset="d", batch_size=32).info()
    assert (info.draw["method"], info.weigh["method"], info.staleness) == ("shuffle", "uniform", 16)


def test_creating_again_names_the_first_difference(client):
    client.create_run("r", dataset="d", batch_size=32)
    client.create_run("r", dataset="d", batch_size=32, exist_ok=True)
    with pytest.raises(steelyard.AlreadyExists):
        client.create_run("r", dataset="d", batch_size=32)
    with pytest.raises(steelyard.AlreadyExists, match="batch_size"):
        client.create_run("r", dataset="d", batch_size=33, exist_ok=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected an integer from 1 to .*, got 0"),
        ({"batch_size": -1}, "batch_size: expected an integer from 1 to .*, got -1"),
        ({"draw": {"method": "shufle"}}, "shuffle"),
        ({"draw": {**SCORED, "flor": 0.1}}, "floor"),
        ({"weigh": {"method": "linuper"}}, "linupper"),
        ({"weigh": {"method": "linupper", "r": float("nan")}}, "weigh.r: expected a finite number"),
        ({"staleness": "all"}, 'staleness: expected a number of steps or "any"'),
        ({"staleness": -1}, "staleness"),
        ({"on_nonfinite": "drop"}, 'expected "skip" or "reject"'),
        ({"report_timeout": 0}, "report_timeout"),
        ({"name": "no spaces"}, "no spaces"),
    ],
)
def test_a_wrong_run_is_refused_and_not_there_afterwards(client, wrong, message):
    arguments = {"name": "r", "dataset": "d", "batch_size": 32, **wrong}
    with pytest.raises(steelyard.InvalidArgument, match=message):
        client.create_run(arguments.pop("name"), **arguments)
    assert client.list_runs() == []


def test_what_is_not_there_is_not_found(client):
    with pytest.raises(steelyard.NotFound, match="nobody"):
        client.run("nobody")
    with pytest.raises(steelyard.NotFound, match="nowhere"):
        client.create_run("r", dataset="nowhere", batch_size=32)
    with pytest.raises(steelyard.NotFound, match="nobody"):
        client.delete_run("nobody")


def test_history_columns_stats_and_batches_tell_what_happened(client):
    run = client.create_run("r", dataset="d", batch_size=50, draw=SCORED, staleness=0)
    batches = train(run, 4)
    stats = run.stats()
    assert (stats.closed_steps, stats.reported_losses, stats.connected_ranks) == (4, 200, 0)
    assert stats.never_reported == 200 - len(np.unique(np.concatenate([one.ids for one in batches])))
    again = run.batch(2)
    np.testing.assert_array_equal(again.ids, batches[2].ids)
    np.testing.assert_array_equal(again.probability, batches[2].probability)
    assert again.digest == batches[2].digest
    ids = np.arange(200)
    expected = [
        [(one.step, np.float32(i / 100)) for one in batches for at in one.ids if at == i] for i in ids
    ]
    assert run.history(ids) == expected
    known = np.array([bool(one) for one in expected[:]])
    column = run.column("last_loss")
    seen_before_last = np.isin(ids, np.concatenate([one.ids for one in batches[:3]]))
    np.testing.assert_array_equal(column[seen_before_last], (ids / 100).astype(np.float32)[seen_before_last])
    assert np.isnan(column[~known]).all()


def test_large_questions_are_asked_in_parts(client, monkeypatch):
    monkeypatch.setattr(steelyard.run, "_CHUNK", 30)
    monkeypatch.setattr(steelyard.run, "_WHOLE", 100)
    run = client.create_run("r", dataset="d", batch_size=100, draw=SCORED, staleness=0)
    train(run, 3)
    ids = np.arange(200)[::-1]
    assert run.history(ids) == [run.history([i])[0] for i in ids]
    np.testing.assert_array_equal(run.column("last_loss")[ids], run.column("last_loss", ids))
    assert run.history([]) == []
    assert run.column("last_loss", []).shape == (0,)


def test_a_history_larger_than_a_message_is_asked_for_in_parts(client):
    client.create_dataset("large", 200_000)
    run = client.create_run("r", dataset="large", batch_size=32)
    ids = np.arange(180_000)
    for loss in range(8):
        run.observe(ids, np.full(len(ids), loss))
    # 8 entries of 12 bytes and a count of 4 for each id make 18 MB, and the server's limit is 16 MiB.
    assert run.history(ids) == [[(0, float(loss)) for loss in range(8)]] * len(ids)


def test_a_history_of_a_run_that_keeps_none_is_empty_for_each_id(client):
    run = client.create_run("r", dataset="d", batch_size=32, history_size=0)
    run.observe([1], [1.0])
    assert run.history([1, 2]) == [[], []]


def test_many_observed_ids_travel_in_parts(client):
    count = (1 << 20) + 300_000
    client.create_dataset("large", count)
    run = client.create_run("r", dataset="large", batch_size=32, draw=SCORED, staleness=0, history_size=0)
    losses = np.arange(count, dtype=np.float32)
    before = run.stats().journal_records
    run.observe(np.arange(count), losses)
    assert run.stats().journal_records - before == 2
    np.testing.assert_array_equal(run.column("last_loss"), losses)


def test_a_part_of_an_observation_fits_into_a_message_whatever_the_signals(client):
    count = 1 << 20
    client.create_dataset("large", count)
    run = client.create_run("r", dataset="large", batch_size=32, draw=SCORED, staleness=0, history_size=0)
    losses = np.arange(count, dtype=np.float32)
    run.observe(np.arange(count), {"loss": losses, "a": losses, "b": losses, "c": losses})
    np.testing.assert_array_equal(run.column("last_loss"), losses)


def test_parts_of_an_observation_before_the_one_that_is_refused_stay(client, monkeypatch):
    monkeypatch.setattr(steelyard.run, "_CHUNK", 30)
    run = client.create_run("r", dataset="d", batch_size=32, draw=SCORED, staleness=0)
    with pytest.raises(steelyard.InvalidArgument, match="999"):
        run.observe([*range(60), 999], np.ones(61))
    assert np.isfinite(run.column("last_loss")).tolist() == [True] * 60 + [False] * 140
    with pytest.raises(steelyard.InvalidArgument, match="expected 61 values"):
        run.observe(range(100, 161), {"loss": np.ones(61), "other": np.ones(60)})
    assert np.isnan(run.column("last_loss")[100:]).all()


def test_a_column_that_the_policy_does_not_keep_is_not_found(client):
    run = client.create_run("r", dataset="d", batch_size=32)
    with pytest.raises(steelyard.NotFound, match="last_los"):
        run.column("last_los")


def test_observed_losses_are_known_to_the_run(client):
    run = client.create_run("r", dataset="d", batch_size=32, draw=SCORED, staleness=0)
    run.observe([5, 6], [1.5, 2.5])
    with pytest.raises(steelyard.FailedPrecondition, match="expected a step below 0, the next to draw"):
        run.observe([7], [3.5], step=0)
    run.observe([7], {"loss": [3.5], "correct": [1]})
    np.testing.assert_array_equal(run.column("last_loss", [4, 5, 6, 7]), [np.nan, 1.5, 2.5, 3.5])
    train(run, 2)
    assert all((0, i - 3.5) in run.history([i])[0] for i in (5, 6, 7))
    for ids, signals, message in [
        ([1, 2], [1.0], "expected 2 values, one for each id; got 1"),
        ([1], {}, "at least one"),
        ([200], [1.0], "200"),
        ([-1], [1.0], "from 0 on"),
    ]:
        with pytest.raises(steelyard.InvalidArgument, match=message):
            run.observe(ids, signals)


def test_the_first_batch_knows_what_was_observed_before_it_under_any_staleness(client):
    run = client.create_run(
        "r", dataset="d", batch_size=32, staleness=16, draw={**SCORED, "floor": 0, "unseen": 1e-6}
    )
    ids = np.arange(40, 72)
    run.observe(ids, np.full(32, 1e6))
    with run.join() as session:
        assert sorted(session.next().ids) == ids.tolist()


def test_bookmarks_hold_steps_and_rewind_leads_back_to_them(client):
    run = client.create_run("r", dataset="d", batch_size=32, draw=SCORED, staleness=2)
    first = train(run, 6)
    assert run.bookmark("here", 3) == 3
    assert run.bookmark("here", 3) == 3
    assert run.bookmark("now") == 6
    assert run.info().bookmarks == {"here": 3, "now": 6}
    with pytest.raises(steelyard.AlreadyExists, match="here"):
        run.bookmark("here", 4)
    with pytest.raises(steelyard.FailedPrecondition):
        run.bookmark("ahead", 1000)
    run.delete_bookmark("now")
    run.delete_bookmark("now")
    assert run.rewind("here").closed_steps == 3
    again = train(run, 3)
    assert [one.step for one in again] == [3, 4, 5]
    assert [one.digest for one in again] == [one.digest for one in first[3:]]
    assert run.rewind(1).next_step == 1
    with pytest.raises(steelyard.NotFound, match="nothing"):
        run.rewind("nothing")
    with pytest.raises(steelyard.FailedPrecondition):
        run.rewind(1000)


def test_a_fork_goes_its_own_way_from_the_same_state(client):
    run = client.create_run("r", dataset="d", batch_size=32, draw=SCORED, staleness=2)
    batches = train(run, 6)
    run.bookmark("at four", 4)
    same = run.fork("same", step="at four")
    assert (same.info().parent, same.info().parent_step) == ("r", 4)
    assert [one.digest for one in train(same, 2)] == [one.digest for one in batches[4:]]
    other = run.fork("other", draw={"method": "shuffle"}, weigh={"method": "linupper"})
    assert other.info().next_step == 6
    assert (other.info().draw["method"], other.info().weigh["method"]) == ("shuffle", "linupper")
    assert run.info().draw["method"] == "scored"
    with pytest.raises(steelyard.AlreadyExists):
        run.fork("other")


def test_a_changed_policy_holds_from_the_next_draw_on(client):
    run = client.create_run("r", dataset="d", batch_size=32)
    assert run.change_policy(weigh={"method": "linupper", "r": 0.4}).weigh["r"] == 0.4
    assert run.change_policy(draw=SCORED, weigh={"method": "uniform"}).draw["method"] == "scored"
    with pytest.raises(steelyard.InvalidArgument, match="linupper"):
        run.change_policy(weigh={"method": "linuper"})


def test_a_closed_step_takes_no_more_reports(client, caplog):
    run = client.create_run("r", dataset="d", batch_size=32, draw=SCORED, staleness=0)
    with pytest.raises(steelyard.FailedPrecondition, match="not drawn"):
        run.close_step(0)
    with run.join() as session:
        batch = session.next()
        run.close_step(0)
        session.report(batch, np.ones(32))
        session.flush()
        assert session.late_reports == 1
        assert session.next().step == 1
    assert "step 0 came after the step was closed" in caplog.text
    assert run.stats().late_reports == 1


def test_a_handle_works_after_it_travelled(client):
    run = pickle.loads(pickle.dumps(client.create_run("r", dataset="d", batch_size=32)))
    assert run.info().name == "r"
    run.client.close()
    assert client.run("r").name == "r"


def test_a_closed_client_says_so(client):
    other = steelyard.connect(client.address)
    run = other.create_run("r", dataset="d", batch_size=32)
    other.close()
    other.close()
    with pytest.raises(steelyard.Unavailable, match="was closed"):
        run.info()


def test_a_server_that_is_not_there_is_an_error_with_its_address_and_the_purpose():
    client = steelyard.connect("127.0.0.1:1", timeout=0.3)
    message = r"asking for run 'r': no answer from 127\.0\.0\.1:1 within 0\.3 s"
    with pytest.raises(steelyard.DeadlineExceeded, match=message):
        client.run("r")
    client.close()
