"""run.batch(step), long after: what was served and what it counted, as the trainers were told."""

import threading
import time
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard import weigh
from steelyard.testing import ServerProcess, server
from steelyard_server.runs.spec import LEAST_REPORT_WINDOW

BATCH = 4
STEPS = LEAST_REPORT_WINDOW + 60
"""So many that the first 60 and a few have left the server's memory."""
GONE = STEPS - LEAST_REPORT_WINDOW - 4
LINUPPER = {"method": "linupper", "r": 0.4}
QUADRATIC = {"method": "quadratic", "r": 0.8}


def loss(ids, step):
    return ((ids * 7 + step * 3) % 11 / 4).astype(np.float32)


def train(run, steps, *, attempt="a", start_step=None, rank=0, world_size=1):
    """Trains by the session's own weights; step → (ids, weights as told)."""
    told = {}
    with run.join(rank=rank, world_size=world_size, attempt=attempt, start_step=start_step, timeout=60) as s:
        for _ in range(steps):
            batch = s.next()
            told[batch.step] = batch.ids, np.asarray(s.report(batch, loss(batch.ids, batch.step)))
        s.flush()
    return told


def check(run, told, steps=None):
    for step in told if steps is None else steps:
        ids, weights = told[step]
        batch = run.batch(step)
        np.testing.assert_array_equal(batch.ids, ids)
        np.testing.assert_array_equal(batch.weight, weights, err_msg=f"step {step}")
        np.testing.assert_array_equal(batch.probability, np.full(len(ids), 1 / 40))


def weighed(told):
    """Whether the weights say anything: some are not 1."""
    return any((weights != 1).any() for _, weights in told.values())


@pytest.mark.parametrize("where", ["client", "server"])
def test_weights_of_steps_that_left_memory_are_those_that_trainers_were_told(tmp_path, where):
    with server(tmp_path) as client:
        client.create_dataset("d", 40)
        run = client.create_run("r", dataset="d", batch_size=BATCH, weigh={**LINUPPER, "where": where})
        told = train(run, 30)
        run.change_policy(weigh={**QUADRATIC, "where": where})
        told |= train(run, STEPS - 30, attempt="b")
        assert len(told) == STEPS
        assert weighed(told)
        check(run, told)
    # The drain made a checkpoint, so nothing of these steps is folded again.
    with server(tmp_path) as client:
        run = client.run("r")
        check(run, told, range(0, STEPS, 5))
        told |= train(run, 3, attempt="c")
        check(run, told, [*range(GONE), STEPS, STEPS + 2])


def test_two_ranks_are_told_what_the_audit_says(tmp_path):
    with server(tmp_path) as client:
        client.create_dataset("d", 40)
        run = client.create_run("r", dataset="d", batch_size=BATCH, weigh={**LINUPPER, "where": "server"})
        parts: list[dict[int, tuple[Any, Any]]] = [{}, {}]

        def rank(number):
            parts[number].update(train(run, 12, rank=number, world_size=2))

        threads = [threading.Thread(target=rank, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        told = {
            step: tuple(np.concatenate([part[step][which] for part in parts]) for which in (0, 1))
            for step in range(12)
        }
        check(run, told)
        train(run, LEAST_REPORT_WINDOW + 5, attempt="b")
        check(run, told)


def test_positions_that_were_never_reported_weigh_nothing(tmp_path):
    with server(tmp_path) as client:
        client.create_dataset("d", 40)
        run = client.create_run("r", dataset="d", batch_size=BATCH, weigh=LINUPPER)
        served = []
        with run.join(rank=0, world_size=2, attempt="a", prefetch=4) as session:
            for _ in range(3):
                batch = session.next()
                session.report_raw(batch, loss(batch.ids, batch.step))
                served.append(batch)
            session.flush()
            run.close_step(1)
            # Not closed: its weights are not known.
            assert run.batch(0).weight.tolist() == [1] * BATCH
        before = [run.batch(step).weight for step in range(3)]
        # Steps 0 and 2 are left behind by an attempt that goes on after them, and that closes them.
        train(run, LEAST_REPORT_WINDOW + 5, attempt="b", start_step=3)
        for step, batch in enumerate(served):
            whole = run.batch(step)
            mine = loss(batch.ids, step)
            expected = weigh.weights(
                np.concatenate([mine, np.zeros(2, np.float32)]),
                LINUPPER,
                step=step,
                mask=np.array([True, True, False, False]),
            )
            np.testing.assert_array_equal(whole.weight, expected)
            assert whole.weight[2:].tolist() == [0, 0]
        np.testing.assert_array_equal(before[1], run.batch(1).weight)


def test_a_step_that_was_left_behind_open_weighs_what_was_reported_until_then(tmp_path):
    with server(tmp_path) as client:
        client.create_dataset("d", 40)
        run = client.create_run("r", dataset="d", batch_size=BATCH, weigh=LINUPPER)
        with run.join(rank=0, world_size=2, attempt="a", prefetch=4, timeout=60) as session:
            for _ in range(STEPS):
                batch = session.next()
                session.report_raw(batch, loss(batch.ids, batch.step))
            with run.join(rank=1, world_size=2, attempt="a", prefetch=1, timeout=60) as other:
                late = other.next()
                assert late.step > GONE
        for step in range(0, GONE, 7):
            whole = run.batch(step)
            mask = np.array([True, True, False, False])
            expected = weigh.weights(loss(whole.ids, step), LINUPPER, step=step, mask=mask)
            np.testing.assert_array_equal(whole.weight, expected)
        assert run.batch(late.step).weight.tolist() == [1] * BATCH


def test_a_report_that_came_after_the_step_was_closed_weighs_nothing(tmp_path):
    with server(tmp_path) as client:
        client.create_dataset("d", 40)
        run = client.create_run("r", dataset="d", batch_size=BATCH, weigh={**LINUPPER, "where": "client"})
        with run.join(attempt="a", prefetch=2) as session:
            batch = session.next()
            run.close_step(0)
            session.report(batch, loss(batch.ids, 0))
            session.flush()
            assert session.late_reports == 1
        assert run.batch(0).weight.tolist() == [0] * BATCH
        train(run, LEAST_REPORT_WINDOW + 5, attempt="b")
        assert run.batch(0).weight.tolist() == [0] * BATCH


def test_after_going_back_the_audit_is_of_what_was_served_then(tmp_path):
    with server(tmp_path) as client:
        client.create_dataset("d", 40)
        run = client.create_run("r", dataset="d", batch_size=BATCH, weigh=LINUPPER)
        told = train(run, 20)
        run.rewind(10)
        run.change_policy(weigh=QUADRATIC)
        with pytest.raises(steelyard.NotFound, match=r"no batch of step 10: the steps 0\.\.9 are retained"):
            run.batch(10)
        again = train(run, STEPS, attempt="b")
        assert min(again) == 10
        check(run, {step: told[step] for step in range(10)} | again)
        np.testing.assert_array_equal(told[10][0], again[10][0])
        assert (told[10][1] != again[10][1]).any()


def test_the_steps_of_a_parent_are_not_those_of_its_fork(tmp_path):
    with server(tmp_path) as client:
        client.create_dataset("d", 40)
        run = client.create_run("r", dataset="d", batch_size=BATCH, weigh=LINUPPER)
        told = train(run, 8)
        fork = run.fork("f", step=5, weigh=QUADRATIC)
        with pytest.raises(steelyard.NotFound, match="no batch of step 4: none is drawn yet"):
            fork.batch(4)
        other = train(fork, STEPS, attempt="b")
        assert min(other) == 5
        check(fork, other)
        check(run, told)
        for step in (0, 4):
            with pytest.raises(steelyard.NotFound, match=rf"no batch of step {step}: the steps 5\.\."):
                fork.batch(step)
        np.testing.assert_array_equal(told[5][0], other[5][0])
        assert (told[5][1] != other[5][1]).any()


def test_a_bookmarked_past_is_audited_as_far_as_its_reports_are_kept(tmp_path):
    with server(tmp_path, checkpoint_interval_seconds=0.5) as client:
        client.create_dataset("d", 40)
        run = client.create_run("r", dataset="d", batch_size=BATCH, weigh=LINUPPER, retain_steps=40)
        told = train(run, 60)
        run.bookmark("past", 40)
        deadline = time.monotonic() + 60
        while (oldest := run.info().oldest_step) <= 60 + LEAST_REPORT_WINDOW:
            assert time.monotonic() < deadline, f"the oldest step is still {oldest}"
            told |= train(run, 20, attempt=f"a{len(told)}")
        check(run, told, [40, 41, 50, *range(oldest, max(told) + 1)])
        answered = {step for step in range(oldest) if _answers(run, step)}
        assert {40, 41} <= answered < set(range(oldest))
        check(run, told, answered)
    with server(tmp_path) as client:
        check(client.run("r"), told, sorted(answered))


def _answers(run, step):
    try:
        run.batch(step)
    except steelyard.NotFound:
        return False
    return True


def test_the_audit_outlives_a_killed_server(tmp_path):
    with ServerProcess(tmp_path / "s") as process:
        client = process.client()
        client.create_dataset("d", 40)
        run = client.create_run("r", dataset="d", batch_size=BATCH, weigh=LINUPPER)
        told = train(run, STEPS)
        process.kill()
        process.start()
        check(run, told, range(0, STEPS, 3))
