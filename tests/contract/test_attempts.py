"""Attempts: one launch of the training job at a time, whatever is left of the launches before."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard import events
from steelyard.testing import ServerProcess

SCORED = {"method": "scored", "score": "last_loss", "floor": 0.1}
POLICIES: dict[str, dict[str, Any]] = {
    "shuffle": {"draw": {"method": "shuffle"}},
    "k=0": {"draw": SCORED, "staleness": 0},
    "k=3": {"draw": SCORED, "weigh": {"method": "importance"}, "staleness": 3},
}


def logged(caplog, event):
    return [one.msg for one in caplog.records if isinstance(one.msg, dict) and one.msg.get("event") == event]


def attempts_of(run):
    return [(one.attempt, one.start_step) for one in run.events() if isinstance(one, events.AttemptBegan)]


# -- a launch after a launch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_ranks_that_restart_at_different_moments_beside_zombies_rewind_once_and_go_on_as_if_undisturbed(
    lab, network, caplog, policy
):
    caplog.set_level(logging.INFO, "steelyard_server.runs")
    whole, run = lab.undisturbed(16, **policy), lab.run(**policy)
    bad = network(lab.client.address)
    silent = steelyard.connect(bad.address).run(run.name)
    first = [run.join(rank, 4, attempt="first", timeout=60.0) for rank in range(3)]
    first.append(silent.join(3, 4, attempt="first", timeout=60.0))
    lab.train(first, whole, range(9))
    batches = [session.next() for session in first]
    for rank in (1, 3):
        first[rank].report(batches[rank], lab.losses(batches[rank]))
    for session in first:
        session.flush()
    bad.swallow()
    first[3].report_raw(
        batches[3], lab.losses(batches[3]) + 1
    )  # still under way when the next attempt begins

    # The checkpoint is of step 7. Rank 2 is the first one back, and is as far ahead as the staleness allows.
    def back(rank):
        return run.join(rank, 4, attempt="second", start_step=7, timeout=60.0)

    second = {2: back(2)}
    ahead = [second[2].next()]
    second[2].report(ahead[0], lab.losses(ahead[0]))
    for message, call in (
        ("attempt 'second' has begun at step 7; this trainer belongs to an older launch", first[0].flush),
        ("attempt 'second' has begun", lambda: first[1].report(batches[1], lab.losses(batches[1]))),
        ("attempt 'second' has begun", lambda: take_to_the_end(first[2])),
    ):
        with pytest.raises(steelyard.Aborted, match=message):
            until_told(call)
    second[0] = back(0)
    second[3] = back(3)
    lost = second[3].next()
    second[3].report(lost, lab.losses(lost))
    second[3].flush()
    if policy.get("staleness") != 0:
        second[3].next()
    second[3].close()
    bad.heal()
    with pytest.raises(steelyard.Aborted, match="attempt 'second' has begun"):
        until_told(first[3].flush)
    with pytest.raises(
        steelyard.Aborted, match="attempt 'first' is over: attempt 'second' has begun at step 7"
    ):
        silent.join(3, 4, attempt="first", start_step=9)
    second[3] = back(3)  # once more, as another process
    second[1] = back(1)
    assert [second[rank].step for rank in range(4)] == [7, 7, 8, 8]
    for rank in (0, 1):
        batch = second[rank].next()
        lab.same(batch, whole[7])
        second[rank].report(batch, lab.losses(batch))
    for batch in (*ahead, lost):
        lab.same(batch, whole[7])
    ranks = [second[rank] for rank in range(4)]
    lab.train(ranks, whole, range(8, 16))
    lab.leave(ranks)
    for session in first:
        session.close()

    assert attempts_of(run) == [("first", 0), ("second", 7)]
    assert [one["step"] for one in logged(caplog, "run_rewound")] == [7]
    stats = run.stats()
    assert (stats.reported_losses, stats.refused_reports, stats.closed_steps) == (160, 0, 16)
    ids = np.arange(200)
    expected: dict[int, list[tuple[int, float]]] = {int(one): [] for one in ids}
    for batch in whole:
        for one, loss in zip(batch.ids.tolist(), lab.losses(batch).tolist(), strict=True):
            expected[one].append((batch.step, loss))
    assert run.history(ids) == [expected[int(one)] for one in ids]


def take_to_the_end(session):
    while True:
        session.next()


def until_told(call):
    """Repeats a call that succeeds for as long as its session has not heard; Aborted then."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        call()
        time.sleep(0.01)
    raise AssertionError("the session was never told")


def test_two_ranks_that_name_different_steps_are_told_both(lab):
    run = lab.run()
    lab.train(lab.ranks(run, 2, attempt="first"), lab.undisturbed(6), range(6))
    with run.join(0, 2, attempt="second", start_step=5) as session:
        with pytest.raises(
            steelyard.FailedPrecondition, match="attempt 'second' began at step 5; rank 1 asks for step 4"
        ):
            run.join(1, 2, attempt="second", start_step=4)
        assert run.info().next_step >= 5, "and nothing was undone for it"
        assert session.next().step == 5


def test_an_attempt_is_over_for_good_also_for_a_server_that_was_killed(beside):
    process, lab = beside
    run = lab.run()
    run.join(attempt="first").close()
    run.join(attempt="second").close()
    process.kill()
    process.start()
    with pytest.raises(steelyard.Aborted, match="attempt 'first' is over: attempt 'second' has begun"):
        run.join(attempt="first")
    run.rewind(0)
    with pytest.raises(steelyard.Aborted, match="attempt 'second' is over: the run was rewound"):
        run.join(attempt="second")


# -- the policy that is in force ---------------------------------------------------------------------------------------


def test_a_new_attempt_keeps_the_policy_a_rewind_and_a_fork_take_that_of_their_step(lab):
    """The owner's change was acknowledged, and a restart of trainers is no word of the owner's."""
    before, after = {"draw": SCORED, "staleness": 1}, {**SCORED, "alpha": 3.0}
    old = lab.undisturbed(12, **before)
    run = lab.run(**before)
    with run.join(attempt="one", prefetch=1) as session:
        lab.train([session], old, range(5))
    at = run.info().next_step
    run.change_policy(draw=after)
    with run.join(attempt="two") as session:
        assert session.step == 5
        for _ in range(5):
            session.report(batch := session.next(), lab.losses(batch))
    other = run.fork(f"{run.name}-other", step=3, draw=after)
    same = run.fork(f"{run.name}-same", step=3)

    with run.join(attempt="three", start_step=3) as session, other.join() as beside:
        assert run.info().draw["alpha"] == 3.0
        for _ in range(6):
            one, two = session.next(), beside.next()
            lab.same(one, two)
            session.report(one, lab.losses(one))
            beside.report(two, lab.losses(two))
    assert at > 3
    assert run.batch(3).digest != old[3].digest, "the policy in force drew it"
    assert run.batch(2).digest == old[2].digest

    assert same.info().draw["alpha"] == 1.0
    run.rewind(3)
    assert run.info().draw["alpha"] == 3.0, "it has been in force since step 3"
    run.rewind(2)
    assert run.info().draw["alpha"] == 1.0
    for each, step in ((same, 3), (run, 2)):
        with each.join(attempt="four") as session:
            lab.train([session], old, range(step, 9))


# -- one process a rank ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beside(tmp_path_factory, lab_of):
    with ServerProcess(tmp_path_factory.mktemp("beside")) as process, process.client() as client:
        yield process, lab_of(client)


def test_two_living_processes_that_claim_one_rank_are_told_and_the_first_goes_on(lab, caplog):
    caplog.set_level(logging.WARNING, "steelyard")
    run = lab.run()
    with run.join(1, 2, attempt="a") as first:
        failed: list[Exception] = []

        def claim():
            try:
                run.join(1, 2, attempt="a", timeout=3.0, reconnect_timeout=0.5)
            except Exception as error:
                failed.append(error)

        second = threading.Thread(target=claim)
        second.start()
        deadline = time.monotonic() + 2.5
        while not any("is held by the live session" in one.getMessage() for one in caplog.records):
            assert time.monotonic() < deadline, "the second is told at once, in its log"
            time.sleep(0.01)
        assert second.is_alive(), "and waits, in case that the first is dead"
        second.join(30)
        assert isinstance(failed[0], steelyard.AlreadyExists)
        for words in (
            "rank 1 (replica 0) of attempt 'a' is held by the live session",
            "Waited 3 s for that session to end: where its process is gone, the rank is free within 15 s",
            "where it lives, two processes of this attempt claim the same rank",
        ):
            assert words in str(failed[0])
        assert first.next().step == 0


def test_a_process_that_was_killed_leaves_its_rank_to_the_next_one_at_once(beside, programs):
    process, lab = beside
    run = lab.run()
    holder = start(programs, process.address, run)
    holder.kill()
    with run.join(attempt="a", timeout=10.0) as session:
        assert session.next().step == 0
    holder.communicate(timeout=30)


def test_a_newer_process_takes_the_rank_of_one_that_is_silent_and_the_old_one_is_told_when_it_wakes(
    beside, network, programs
):
    """Both ways to be silent: a network that swallows everything, and a process that stands still."""
    process, lab = beside
    bad = network(process.address)
    runs = lab.run(), lab.run()
    cut_off = steelyard.connect(bad.address).run(runs[0].name).join(attempt="a", timeout=60.0)
    batch = cut_off.next()
    stopped = start(programs, process.address, runs[1])
    bad.swallow()
    stopped.send_signal(signal.SIGSTOP)
    cut_off.report(batch, lab.losses(batch))
    taken: dict[int, steelyard.Session] = {}

    def take(at):
        taken[at] = runs[at].join(attempt="a", timeout=60.0)

    began = time.monotonic()
    takers = [threading.Thread(target=take, args=(at,)) for at in range(2)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(60)
    assert sorted(taken) == [0, 1], "both took over"
    assert time.monotonic() - began < 30, "before a claim is given up"
    bad.heal()
    stopped.send_signal(signal.SIGCONT)
    with pytest.raises(
        steelyard.Aborted, match="was taken by the newer session .* while session .* had no connection"
    ):
        until_told(cut_off.flush)
    output, _ = stopped.communicate("go on\n", timeout=60)
    assert output.startswith("Aborted "), output
    assert "this trainer must stop" in output
    for at, run in enumerate(runs):
        session = taken[at]
        lab.train([session], lab.undisturbed(5), range(5))
        session.flush()
        stats = run.stats()
        assert (stats.reported_losses, stats.refused_reports) == (50, 0), "of the silent ones came nothing"
        session.close()
    cut_off.close()


def start(programs, address, run):
    """A trainer in a process of its own, which has joined."""
    holder = subprocess.Popen(
        [sys.executable, str(programs / "hold_a_rank.py"), address, run.name, "a"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "joined\n"
    return holder
