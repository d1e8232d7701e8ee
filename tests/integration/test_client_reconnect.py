"""Sessions across servers that die, drain, stand still or never come."""

import threading
import time

import numpy as np
import pytest

import steelyard
from steelyard import weigh
from steelyard.testing import ServerProcess

SIZE = 300
SCORED = {"method": "scored", "score": "last_loss", "floor": 0.1}
LINUPPER = {"method": "linupper", "r": 0.4, "where": "server"}


@pytest.fixture
def process(tmp_path):
    with ServerProcess(tmp_path) as process:
        process.client().create_dataset("d", SIZE)
        yield process


def losses_of(batch):
    return ((batch.ids * 7 + batch.step * 13) % 101 / 50).astype(np.float32)


def train(session, steps, before_step=lambda step: None):
    """Trains and returns (digest, weights) of every step."""
    seen = []
    for _ in range(steps):
        batch = session.next(timeout=30)
        before_step(batch.step)
        seen.append((batch.step, batch.digest, session.report(batch, losses_of(batch), timeout=30).tolist()))
    return seen


def unbroken(process, steps, **arguments):
    run = process.client().create_run("unbroken", dataset="d", batch_size=16, **arguments)
    with run.join() as session:
        return train(session, steps), run


POLICIES: dict[str, dict] = {
    "shuffle, weighed by the server": {"weigh": LINUPPER},
    "scored": {"draw": SCORED, "weigh": {"method": "importance"}, "staleness": 3},
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_server_killed_again_and_again_changes_nothing_that_a_trainer_sees(process, policy):
    expected, whole = unbroken(process, 24, **policy)
    run = process.client().create_run("r", dataset="d", batch_size=16, **policy)

    def kill_sometimes(step):
        if step % 10 == 3:
            process.kill()
            threading.Timer(0.3, process.start).start()
        elif step % 10 == 6:
            process.kill()
            process.start()

    with run.join() as session:
        assert train(session, 24, kill_sometimes) == expected
    ids = np.arange(SIZE)
    assert run.history(ids) == whole.history(ids)
    assert run.stats().reported_losses == 24 * 16
    assert run.stats().late_reports == 0


def test_a_drain_and_a_restart_go_unnoticed(process):
    expected, _ = unbroken(process, 20, **POLICIES["scored"])
    run = process.client().create_run("r", dataset="d", batch_size=16, **POLICIES["scored"])

    def drain(step):
        if step == 10:
            assert process.terminate() == 0
            process.start()

    with run.join() as session:
        assert train(session, 20, drain) == expected


def test_reports_made_without_a_connection_arrive_when_it_is_back(process):
    run = process.client().create_run("r", dataset="d", batch_size=16)
    with run.join() as session:
        batches = [session.next() for _ in range(12)]
        process.kill()
        pending = [session.report_async(batch, losses_of(batch)) for batch in batches]
        assert session.unacknowledged == 12
        with pytest.raises(
            steelyard.DeadlineExceeded, match=r"12 reports .* are not acknowledged; no connection for \d+ s"
        ):
            session.flush(timeout=0.5)
        process.start()
        session.flush(timeout=30)
        assert all(one.done for one in pending)
        assert run.stats().reported_losses == 12 * 16
        # What was acknowledged is not sent again by a later connection.
        process.kill()
        process.start()
        session.next(timeout=30)
        for _ in range(session.prefetch):
            session.next(timeout=30)
        assert run.stats().duplicate_reports == 0


def test_weights_that_were_waited_for_when_the_server_died_come_from_the_next_one(process):
    run = process.client().create_run("r", dataset="d", batch_size=16, weigh=LINUPPER)
    one, two = (run.join(rank, 2, attempt="t") for rank in range(2))
    batches = one.next(), two.next()
    pending = one.report_async(batches[0], losses_of(batches[0]))
    one.flush()
    process.kill()
    process.start()
    assert not pending.done
    weights = two.report(batches[1], losses_of(batches[1]), timeout=30)
    losses = np.concatenate([losses_of(batch) for batch in batches])
    np.testing.assert_allclose(
        np.concatenate([pending.result(timeout=30), weights]),
        weigh.weights(losses, LINUPPER, step=0),
        rtol=1e-6,
    )
    one.leave()
    two.leave()


def test_a_rule_that_changed_while_there_was_no_connection_is_known(process):
    run = process.client().create_run("r", dataset="d", batch_size=16)
    with run.join(prefetch=1) as session:
        for _ in range(3):
            batch = session.next()
            session.report(batch, losses_of(batch))
        session._stream._call.cancel()  # as a connection that breaks
        run.change_policy(weigh={"method": "linupper", "r": 0.4})
        for _ in range(4):
            batch = session.next(timeout=30)
            expected = weigh.weights(losses_of(batch), session.rule, step=batch.step)
            np.testing.assert_allclose(session.report(batch, losses_of(batch)), expected, rtol=1e-6)
        assert session.rule.method == "linupper"


def test_a_wait_for_a_batch_says_that_there_is_no_connection(process):
    run = process.client().create_run("r", dataset="d", batch_size=16)
    session = run.join(prefetch=1, reconnect_timeout=60)
    session.next()
    process.kill()
    with pytest.raises(
        steelyard.DeadlineExceeded, match="no batch of step .* no connection for .* last error: "
    ):
        take_for(session, 1.0)
    session.close()


def take_for(session, seconds):
    while True:
        session.next(timeout=seconds)


def test_a_session_gives_up_after_its_reconnect_timeout_and_says_why(process):
    run = process.client().create_run("r", dataset="d", batch_size=16, weigh=LINUPPER)
    session = run.join(0, 2, attempt="t", reconnect_timeout=1.0)
    batch = session.next()
    pending = session.report_async(batch, losses_of(batch))
    process.kill()
    began = time.monotonic()
    with pytest.raises(
        steelyard.Unavailable, match=r"gave up after \d+ s of trying to reach it; last error: "
    ):
        pending.result(timeout=30)
    assert 0.5 < time.monotonic() - began < 10
    with pytest.raises(steelyard.Unavailable, match="gave up"):
        take_for(session, 30)
    with pytest.raises(steelyard.Unavailable, match="gave up"):
        session.flush()
    session.close()


def test_joining_waits_for_a_server_that_is_being_started(process):
    run = process.client().create_run("r", dataset="d", batch_size=16)
    process.kill()
    starter = threading.Timer(0.7, process.start)
    starter.start()
    with run.join(timeout=60) as session:
        assert session.next(timeout=30).step == 0
    starter.join()


def test_calls_wait_for_a_server_that_is_being_started(process):
    client = process.client(timeout=60)
    process.kill()
    starter = threading.Timer(0.7, process.start)
    starter.start()
    assert client.dataset("d").size == SIZE
    starter.join()
    process.kill()
    process.start()
    assert client.dataset("d").size == SIZE


def test_a_server_that_stands_still_is_waited_for_within_the_deadline(process):
    run = process.client().create_run("r", dataset="d", batch_size=16)
    with run.join(prefetch=1) as session:
        session.next()
        process.pause()
        with pytest.raises(steelyard.DeadlineExceeded, match="the server sent nothing"):
            take_for(session, 0.5)
        with pytest.raises(steelyard.DeadlineExceeded, match="has not answered the join|last error"):
            run.join(timeout=0.5)
        process.resume()
        session.next(timeout=30)


def test_leaving_without_a_connection_takes_no_longer_than_the_reports_need(process):
    run = process.client().create_run("r", dataset="d", batch_size=16)
    session = run.join()
    session.report(session.next(), np.ones(16))
    session.flush()
    process.kill()
    began = time.monotonic()
    session.leave(timeout=60)
    assert time.monotonic() - began < 10
    session = None
    process.start()
    with run.join() as session:
        assert session.next(timeout=30).step == 1
        session.report(session.next(), np.ones(16))
        process.kill()
        with pytest.raises(steelyard.DeadlineExceeded, match="not acknowledged"):
            session.leave(timeout=0.5)
    process.start()


def test_a_trainer_that_lost_its_session_goes_on_in_the_same_attempt_with_what_it_had_not_reported(process):
    run = process.client().create_run("r", dataset="d", batch_size=16, draw=SCORED, staleness=2)
    session = run.join(attempt="t")
    digests = {}
    for _ in range(5):
        batch = session.next()
        digests[batch.step] = batch.digest
        session.report(batch, losses_of(batch))
    ahead = session.next()
    session.flush()
    session.close()
    with run.join(attempt="t") as again:
        batch = again.next()
        assert (batch.step, batch.digest) == (ahead.step, ahead.digest)
