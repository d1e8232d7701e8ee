"""A trainer's session against a real server: batches, reports, weights, and every wait that ends."""

import pickle
import threading
import time

import numpy as np
import pytest

import steelyard
from steelyard import weigh
from steelyard.testing import ServerProcess, server

SCORED = {"method": "scored", "score": "last_loss", "floor": 0.1}
LINUPPER = {"method": "linupper", "r": 0.4}
SIZE = 500


@pytest.fixture
def client(tmp_path):
    with server(tmp_path) as client:
        client.create_dataset("d", SIZE)
        yield client


@pytest.fixture
def make_run(client):
    def make(**arguments):
        return client.create_run("r", **{"dataset": "d", "batch_size": 32, **arguments})

    return make


def losses_of(batch):
    """A loss that depends on the example and the step."""
    return ((batch.ids * 7 + batch.step * 13) % 101 / 50).astype(np.float32)


def take_to_the_end(session):
    for _ in session:
        pass


def join_ranks(run, world_size, **arguments):
    return [run.join(rank, world_size, attempt="t", **arguments) for rank in range(world_size)]


# -- batches ---------------------------------------------------------------------------------------------------------


def test_batches_come_in_order_and_are_those_that_the_run_served(make_run):
    run = make_run(batch_size=30)
    with run.join() as session:
        assert (session.step, session.start_step, session.batch_size, session.dataset_size) == (
            0,
            0,
            30,
            SIZE,
        )
        assert (session.staleness, session.reads_reports, session.rule.method) == (16, False, "uniform")
        batches = [session.next() for _ in range(40)]
        assert session.step == 40
    assert [one.step for one in batches] == list(range(40))
    for one in (batches[0], batches[39]):
        served = run.batch(one.step)
        np.testing.assert_array_equal(one.ids, served.ids)
        np.testing.assert_array_equal(one.probability, served.probability)
        assert (one.ids.dtype, one.probability.dtype, one.weight.dtype) == (np.int64, np.float64, np.float32)
        assert one.digest == served.digest
    epoch = np.concatenate([one.ids for one in batches])[:SIZE]
    assert sorted(epoch.tolist()) == list(range(SIZE))


@pytest.mark.parametrize("world_size", [1, 3, 7, 9])
def test_the_slices_of_all_ranks_make_up_the_batch_also_where_some_are_empty(make_run, world_size):
    run = make_run(batch_size=7)
    sessions = join_ranks(run, world_size)
    for step in range(5):
        slices = [session.next() for session in sessions]
        assert [one.step for one in slices] == [step] * world_size
        np.testing.assert_array_equal(np.concatenate([one.ids for one in slices]), run.batch(step).ids)
        for session, one in zip(sessions, slices, strict=True):
            assert session.report(one, losses_of(one)).shape == (len(one),)
    for session in sessions:
        session.leave()
    assert run.stats().closed_steps == 5


def test_the_iteration_ends_when_the_session_is_left_within_it(make_run):
    steps = []
    with make_run().join() as session:
        for batch in session:
            steps.append(batch.step)
            if batch.step == 4:
                session.leave()
    assert steps == [0, 1, 2, 3, 4]


def test_no_more_batches_are_held_than_asked_for(make_run):
    run = make_run()
    with run.join(prefetch=3) as session:
        assert session.prefetch == 3
        deadline = time.monotonic() + 10
        while run.stats().next_step < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert run.stats().next_step == 3
        session.next()
        while run.stats().next_step < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert run.stats().next_step == 4


def test_a_session_starts_at_any_retained_step_with_the_batches_of_that_step(make_run):
    run = make_run(draw=SCORED, staleness=2)
    with run.join() as session:
        first = []
        for _ in range(10):
            first.append(session.next())
            session.report(first[-1], losses_of(first[-1]))
    with run.join(start_step=6) as session:
        assert session.start_step == 6
        for expected in first[6:]:
            batch = session.next()
            assert batch.digest == expected.digest
            np.testing.assert_array_equal(batch.probability, expected.probability)
            session.report(batch, losses_of(batch))
    with run.join() as session:
        assert session.next().step == 10


def test_the_time_that_batches_were_waited_for_is_known(make_run):
    run = make_run(draw=SCORED, staleness=1)
    with run.join() as session:
        one, two = session.next(), session.next()
        session.announce(one)
        reporter = threading.Timer(0.3, lambda: session.report(one, losses_of(one)))
        reporter.start()
        session.next(timeout=10)
        reporter.join()
        assert 0.2 < session.last_wait_seconds < 5
        assert session.waited_seconds >= session.last_wait_seconds
        session.report(two, losses_of(two))


# -- reports and weights -----------------------------------------------------------------------------------------------


def test_reports_are_durable_after_flush_and_known_to_the_run(make_run):
    run = make_run()
    with run.join() as session:
        batch = session.next()
        session.report(batch, losses_of(batch), signals={"correct": np.ones(32)})
        session.flush()
        assert session.unacknowledged == 0
        history = run.history(batch.ids)
    assert history == [[(0, loss)] for loss in losses_of(batch).tolist()]


@pytest.mark.parametrize("where", ["auto", "server", "client"])
@pytest.mark.parametrize("method", ["linupper", "quadratic", "extremes", "upper"])
def test_a_trainer_that_is_alone_gets_the_rules_weights_wherever_they_are_made(make_run, method, where):
    config = {"method": method, "r": 0.4, "warmup_steps": 2}
    run = make_run(weigh={**config, "where": where})
    with run.join() as session:
        assert session.rule == weigh.parse(config)
        for step in range(4):
            batch = session.next()
            weights = session.report(batch, losses_of(batch))
            expected = weigh.weights(losses_of(batch), config, step=step)
            assert weights.dtype == np.float32
            np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_ranks_get_their_parts_of_the_weights_of_the_whole_batch(make_run):
    run = make_run(weigh=LINUPPER, batch_size=31)
    sessions = join_ranks(run, 3)
    for step in range(6):
        batches = [session.next() for session in sessions]
        pending = [
            session.report_async(batch, losses_of(batch))
            for session, batch in zip(sessions, batches, strict=True)
        ]
        weights = np.concatenate([one.result() for one in pending])
        losses = np.concatenate([losses_of(batch) for batch in batches])
        np.testing.assert_allclose(weights, weigh.weights(losses, LINUPPER, step=step), rtol=1e-6)
        assert all(one.done for one in pending)
    for session in sessions:
        session.leave()


def test_a_blocking_report_waits_for_the_other_ranks(make_run):
    run = make_run(weigh=LINUPPER)
    one, two = join_ranks(run, 2)
    batch, other = one.next(), two.next()
    reporter = threading.Timer(0.2, lambda: two.report(other, losses_of(other)))
    reporter.start()
    assert one.report(batch, losses_of(batch)).shape == (16,)
    reporter.join()
    one.leave()
    two.leave()


def test_weights_that_other_ranks_hold_up_are_waited_for_no_longer_than_allowed(make_run):
    one, two = join_ranks(make_run(weigh=LINUPPER), 2)
    batch = one.next()
    with pytest.raises(
        steelyard.DeadlineExceeded, match=r"no weights of step 0 within 0\.2 s.*all 2 ranks.*16 of them"
    ):
        one.report(batch, losses_of(batch), timeout=0.2)
    # The report itself stands: with the other rank's the weights come, to who asks again.
    again = one.report_async(batch, losses_of(batch))
    other = two.next()
    two.report(other, losses_of(other))
    assert again.result().shape == (16,)
    one.close()
    two.close()


def test_importance_weights_come_with_the_batch(make_run):
    run = make_run(draw=SCORED, weigh={"method": "importance"}, staleness=0)
    with run.join() as session:
        for _ in range(5):
            batch = session.next()
            np.testing.assert_allclose(batch.weight, 1 / (SIZE * batch.probability), rtol=1e-6)
            weights = session.report(batch, losses_of(batch))
            np.testing.assert_array_equal(weights, batch.weight)
            np.testing.assert_array_equal(
                session.report(batch, losses_of(batch)[8:16], offset=8), weights[8:16]
            )


def test_a_changed_rule_holds_from_its_step_on(make_run):
    run = make_run(weigh=LINUPPER)
    with run.join(prefetch=2) as session:
        session.next()
        run.change_policy(weigh={"method": "quadratic", "r": 0.5})
        rules = {}
        for _ in range(8):
            batch = session.next()
            rules[batch.step] = session.rule
            expected = weigh.weights(losses_of(batch), session.rule, step=batch.step)
            np.testing.assert_allclose(session.report(batch, losses_of(batch)), expected, rtol=1e-6)
    assert rules[1].method == "linupper"
    assert rules[8] == weigh.parse({"method": "quadratic", "r": 0.5})


def test_micro_batches_of_a_slice_are_reported_one_by_one(make_run):
    run = make_run()
    with run.join() as session:
        batch = session.next()
        for first in (0, 8, 16, 24):
            weights = session.report(batch, losses_of(batch)[first : first + 8], offset=first)
            assert weights.tolist() == [1] * 8
        session.flush()
        assert run.stats().closed_steps == 1


def test_micro_batches_that_are_weighed_together_get_their_weights_after_the_last(make_run):
    run = make_run(weigh=LINUPPER)
    with run.join() as session:
        batch = session.next()
        losses = losses_of(batch)
        with pytest.raises(steelyard.InvalidArgument, match="these 8 are not the last of this slice's 32"):
            session.report(batch, losses[:8], offset=0)
        early = [session.report_async(batch, losses[first : first + 8], offset=first) for first in (0, 8, 16)]
        last = session.report(batch, losses[24:], offset=24)
        weights = np.concatenate([*[one.result() for one in early], last])
        np.testing.assert_allclose(weights, weigh.weights(losses, LINUPPER, step=0), rtol=1e-6)


def test_weights_of_the_client_need_the_whole_batch_in_one_place(make_run):
    run = make_run(weigh={**LINUPPER, "where": "client"})
    sessions = join_ranks(run, 2)
    batch = sessions[0].next()
    with pytest.raises(
        steelyard.InvalidArgument, match=r'weigh.where = "client".*16 of 32.*steelyard.torch gathers'
    ):
        sessions[0].report(batch, losses_of(batch))
    assert sessions[0].report_raw(batch, losses_of(batch)).result().shape == (0,)
    for session in sessions:
        session.close()


@pytest.mark.parametrize(
    ("losses", "offset", "message"),
    [
        (31, None, "expected 32 losses, one for each id of the slice, got 31"),
        (33, None, "expected 32 losses, one for each id of the slice, got 33"),
        (33, 0, "expected at most 32 losses from offset 0 of a slice of 32, got 33"),
        (8, 25, "expected at most 7 losses from offset 25 of a slice of 32, got 8"),
        (1, 99, "expected at most 0 losses from offset 99"),
    ],
)
def test_losses_that_do_not_fit_the_batch_are_an_error_that_names_both(make_run, losses, offset, message):
    with make_run().join() as session:
        batch = session.next()
        with pytest.raises(steelyard.MismatchedLosses, match=message):
            session.report(batch, np.ones(losses), offset=offset)
        with pytest.raises(steelyard.MismatchedLosses, match="signal 'correct': expected 32 values"):
            session.report(batch, np.ones(32), signals={"correct": np.ones(losses + 32)})
        session.report(batch, np.ones(32))


def test_a_batch_of_another_session_is_refused(make_run):
    run = make_run()
    one, two = join_ranks(run, 2)
    mine, others = one.next(), two.next()
    with pytest.raises(
        steelyard.InvalidArgument, match="expected a batch of this rank, got one of rank 1 of 2"
    ):
        one.report(others, np.ones(16))
    with pytest.raises(steelyard.InvalidArgument, match="expected a Batch of this session, got ndarray"):
        one.report(mine.ids, np.ones(16))
    for session in (one, two):
        session.close()
    with run.join(start_step=0) as alone, pytest.raises(
        steelyard.InvalidArgument, match="expected a batch that this session handed out"
    ):  # fmt: skip
        alone.report(run.batch(0), np.ones(32))


def test_a_refused_report_is_raised_once_and_the_session_goes_on(make_run):
    run = make_run(on_nonfinite="reject", draw=SCORED, staleness=2)
    with run.join() as session:
        batch = session.next()
        losses = losses_of(batch)
        losses[5] = np.nan
        session.report(batch, losses)
        with pytest.raises(steelyard.ReportRefused, match="nan at position 5") as caught:
            session.flush()
        assert caught.value.code == "INVALID_ARGUMENT"
        session.flush()
        session.next()
        session.next()
        # Step 3 needs the report of step 0, and that was not applied.
        with pytest.raises(steelyard.StalenessError, match="needs the report of step 0"):
            session.next()
        session.report(batch, losses_of(batch))
        assert session.next().step == 3
    assert run.stats().refused_reports == 1


def test_who_waits_for_the_weights_of_a_refused_report_gets_the_refusal(make_run):
    run = make_run(on_nonfinite="reject", weigh={**LINUPPER, "where": "server"})
    with run.join() as session:
        batch = session.next()
        with pytest.raises(steelyard.ReportRefused, match="inf at position 0"):
            session.report(batch, np.full(32, np.inf))
        session.flush()
        session.report(batch, losses_of(batch))


def test_another_value_for_a_reported_position_is_refused(make_run):
    with make_run().join() as session:
        batch = session.next()
        session.report(batch, np.ones(32))
        session.report(batch, np.ones(32))
        session.report(batch, np.zeros(32))
        with pytest.raises(steelyard.ReportRefused) as caught:
            session.flush()
        assert caught.value.code == "ALREADY_EXISTS"


# -- staleness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_a_trainer_that_takes_more_batches_ahead_than_the_staleness_is_told_at_once(make_run, staleness):
    run = make_run(draw=SCORED, staleness=staleness)
    with run.join() as session:
        batches = [session.next() for _ in range(staleness + 1)]
        began = time.monotonic()
        with pytest.raises(steelyard.StalenessError) as caught:
            session.next()
        assert time.monotonic() - began < 1
        for words in (
            f"the draw of step {staleness + 1} needs the report of step 0 (staleness {staleness})",
            f"{staleness + 1} batches are handed out and unreported, where staleness {staleness} allows {staleness}",
            "(1) take fewer batches ahead",
            f"prefetch_factor * num_workers at most {staleness}" if staleness else "num_workers=0",
            "(2) make the run with a staleness of at least",
            '(3) make it with staleness="any"',
        ):
            assert words in str(caught.value)
        session.report(batches[0], losses_of(batches[0]))
        assert session.next(timeout=10).step == staleness + 1


def test_a_partly_reported_step_is_not_reported(make_run):
    with make_run(draw=SCORED, staleness=0).join() as session:
        batch = session.next()
        session.report(batch, losses_of(batch)[:31], offset=0)
        with pytest.raises(steelyard.StalenessError):
            session.next()
        session.report(batch, losses_of(batch)[31:], offset=31)
        assert session.next(timeout=10).step == 1


@pytest.mark.parametrize("arguments", [{"draw": SCORED, "staleness": "any"}, {"staleness": 0}])
def test_a_trainer_may_run_ahead_where_no_draw_waits_for_its_reports(make_run, arguments):
    with make_run(**arguments).join() as session:
        assert [session.next(timeout=10).step for _ in range(30)] == list(range(30))


def test_a_batch_that_other_ranks_hold_up_is_waited_for_no_longer_than_allowed(make_run):
    run = make_run(draw=SCORED, staleness=1)
    one, two = join_ranks(run, 2)
    for _ in range(2):
        batch = one.next()
        one.report(batch, losses_of(batch))
    with pytest.raises(steelyard.DeadlineExceeded) as caught:
        one.next(timeout=0.3)
    assert "no batch of step 2 within 0.3 s" in str(caught.value)
    assert "it needs those of step 0 from all 2 ranks; this rank's is acknowledged" in str(caught.value)
    one.close()
    two.close()


# -- the bounds of what is unacknowledged ------------------------------------------------------------------------------


def test_reports_wait_when_too_many_are_unacknowledged_and_no_longer_than_allowed(tmp_path):
    with ServerProcess(tmp_path) as process:
        client = process.client()
        client.create_dataset("d", SIZE)
        run = client.create_run("r", dataset="d", batch_size=32)
        with run.join() as session:
            session._member.ledger.max_reports = 3
            batches = [session.next() for _ in range(6)]
            process.pause()
            try:
                for batch in batches[:3]:
                    session.report(batch, losses_of(batch))
                with pytest.raises(
                    steelyard.DeadlineExceeded,
                    match=r"report of step 3 was not sent within 0\.3 s.*3 reports \(\d+ bytes",
                ):
                    session.report(batches[3], losses_of(batches[3]), timeout=0.3)
                with pytest.raises(steelyard.DeadlineExceeded, match="3 reports .* are not acknowledged"):
                    session.flush(timeout=0.2)
            finally:
                process.resume()
            for batch in batches[3:]:
                session.report(batch, losses_of(batch))
        assert run.stats().reported_losses == 6 * 32


# -- who may join, and how sessions end --------------------------------------------------------------------------------


def test_a_rank_that_is_taken_is_refused_until_it_is_left(make_run):
    run = make_run()
    first = run.join(0, 2, attempt="t")
    with pytest.raises(steelyard.AlreadyExists, match="held by the live session .* claim the same rank"):
        run.join(0, 2, attempt="t", timeout=0.5)
    run.join(0, 2, attempt="t", replica=1).leave()
    first.leave()
    run.join(0, 2, attempt="t").leave()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 1, "world_size": 3, "attempt": "t"}, steelyard.FailedPrecondition, "world_size 2"),
        ({"rank": 1, "world_size": 2, "attempt": "t", "start_step": 5}, steelyard.FailedPrecondition, "at step 0"),
        ({"start_step": 10_000}, steelyard.FailedPrecondition, "10000"),
        ({"fingerprint": "another"}, steelyard.FailedPrecondition, "another"),
        ({"rank": 2, "world_size": 2, "attempt": "t"}, steelyard.InvalidArgument, "rank: expected an integer"),
    ],
)  # fmt: skip
def test_a_join_that_does_not_fit_the_run_is_refused(client, arguments, error, message):
    client.create_dataset("named", SIZE, fingerprint="one")
    run = client.create_run("r", dataset="named", batch_size=32)
    with run.join(0, 2, attempt="t", fingerprint="one") as session:
        with pytest.raises(error, match=message):
            run.join(**arguments)
        assert session.next().step == 0


def test_a_newer_attempt_ends_the_sessions_of_the_older_for_good(make_run):
    run = make_run()
    old = run.join(attempt="first")
    batch = old.next()
    with run.join(attempt="second") as new:
        with pytest.raises(steelyard.Aborted, match="second"):
            take_to_the_end(old)
        with pytest.raises(steelyard.Aborted, match="second"):
            old.report(batch, losses_of(batch))
        with pytest.raises(steelyard.Aborted):
            old.flush()
        old.close()
        with pytest.raises(steelyard.Aborted, match="first"):
            run.join(attempt="first")
        assert new.next().step == 0


def test_a_rewind_ends_the_sessions(make_run):
    run = make_run()
    session = run.join()
    session.next()
    run.rewind(0)
    with pytest.raises(steelyard.Aborted, match="rewound"):
        take_to_the_end(session)
    session.close()


def test_a_deleted_run_ends_the_sessions_and_those_who_wait_in_them(client, make_run):
    session = make_run(weigh={**LINUPPER, "where": "server"}).join(0, 2, attempt="t")
    batch = session.next()
    pending = session.report_async(batch, losses_of(batch))
    deleter = threading.Timer(0.2, lambda: client.delete_run("r"))
    deleter.start()
    with pytest.raises(steelyard.NotFound, match="deleted"):
        pending.result()
    with pytest.raises(steelyard.NotFound, match="deleted"):
        session.next()
    deleter.join()
    session.close()


def test_joining_a_run_that_is_not_there_is_not_found(client):
    with pytest.raises(steelyard.NotFound, match="nobody"):
        steelyard.Run(client, "nobody").join()


def test_a_closed_session_says_so_to_every_call(make_run):
    session = make_run(weigh={**LINUPPER, "where": "server"}).join(0, 2, attempt="t")
    batch = session.next()
    pending = session.report_async(batch, losses_of(batch))
    session.close()
    session.close()
    session.leave()
    for call in (
        session.next,
        session.flush,
        lambda: session.report(batch, losses_of(batch)),
        pending.result,
    ):
        with pytest.raises(steelyard.SessionClosed):
            call()
    assert list(session) == []


def test_leaving_makes_every_report_durable_and_frees_the_rank(make_run):
    run = make_run()
    with run.join() as session:
        for _ in range(20):
            batch = session.next()
            session.report(batch, losses_of(batch))
    stats = run.stats()
    assert (stats.reported_losses, stats.connected_ranks) == (20 * 32, 0)


def test_an_error_within_the_session_is_raised_as_it_is(make_run):
    with pytest.raises(ZeroDivisionError), make_run().join() as session:
        1 / 0  # noqa: B018
    with pytest.raises(steelyard.SessionClosed):
        session.next()


def test_joining_a_server_that_is_not_there_ends_with_what_was_tried():
    run = steelyard.Run(steelyard.connect("127.0.0.1:1"), "r")
    began = time.monotonic()
    with pytest.raises(
        steelyard.Unavailable,
        match=r"joining run 'r', rank 0 of 1 at 127\.0\.0\.1:1: no answer within 0\.5 s; last error",
    ):
        run.join(timeout=0.5)
    assert time.monotonic() - began < 5


def test_a_session_does_not_travel(make_run):
    with make_run().join() as session, pytest.raises(TypeError, match="pickle the Run"):
        pickle.dumps(session)


def test_many_threads_may_share_a_session(make_run):
    run = make_run()
    seen = []
    with run.join() as session:

        def work():
            for _ in range(25):
                batch = session.next()
                session.report(batch, losses_of(batch))
                seen.append(batch.step)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert sorted(seen) == list(range(100))
    assert run.stats().closed_steps == 100
