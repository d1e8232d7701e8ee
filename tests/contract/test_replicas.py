"""Processes that share one rank's slice (model parallelism): all are served the same, and any one of them reports."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard import weigh

SCORED = {
    "draw": {"method": "scored", "score": "last_loss", "floor": 0.1},
    "weigh": {"method": "importance"},
    "staleness": 2,
}
LINUPPER = {"method": "linupper", "r": 0.4, "where": "server"}
LAST = 2
"""The replica of the pipeline's last stage, which is the one that has losses."""


def stages(run, rank=0, world_size=1, **options):
    """A pipeline of three processes that share a slice; the last one reports."""
    return [
        run.join(
            rank, world_size, attempt="a", replica=replica, reports=replica == LAST, timeout=60.0, **options
        )
        for replica in range(3)
    ]


def leave(sessions):
    for session in sessions:
        session.leave(60.0)


# -- what they are served ----------------------------------------------------------------------------------------------


def test_every_process_of_a_slice_is_served_the_same_bytes_and_the_last_stage_reports(lab):
    whole, run = lab.undisturbed(12, **SCORED), lab.run(**SCORED)
    ranks = [stages(run, rank, 2) for rank in range(2)]
    for step in range(12):
        for sessions in ranks:
            batches = [session.next() for session in sessions]
            for batch in batches:
                assert batch.state_version == max(0, step - 2)
                lab.same(batch, whole[step])
            sessions[LAST].report(batches[LAST], lab.losses(batches[LAST]))
    for sessions in ranks:
        leave(sessions)
    stats = run.stats()
    assert (stats.reported_losses, stats.duplicate_reports) == (120, 0)


def test_replica_0_reports_unless_it_is_said_otherwise(lab):
    run = lab.run(**SCORED)
    for replica, reports, expected in ((0, None, True), (1, None, False), (0, False, False), (1, True, True)):
        with run.join(attempt=f"{replica} {reports}", replica=replica, reports=reports) as session:
            assert session.reports is expected
    with pytest.raises(steelyard.InvalidArgument, match="reports: expected True, False or None, got 'yes'"):
        run.join(reports="yes")


def test_a_process_that_does_not_report_runs_ahead_of_the_one_that_does_and_waits_for_it_at_the_bound(lab):
    """It gets no StalenessError, as nothing that it could do would help; its wait ends and says whose report lacks."""
    whole, run = lab.undisturbed(6, **SCORED), lab.run(**SCORED)
    first, _, last = sessions = stages(run)
    for step in range(3):
        lab.same(first.next(), whole[step])
    with pytest.raises(
        steelyard.DeadlineExceeded, match="no batch of step 3 within 0.3 s.*is made by another process"
    ):
        first.next(0.3)
    taken: list[steelyard.Batch] = []
    waiter = threading.Thread(target=lambda: taken.append(first.next()))
    waiter.start()
    batch = last.next()
    last.report(batch, lab.losses(batch))
    waiter.join(30.0)
    lab.same(taken[0], whole[3])
    # The one that reports is told at once where it runs ahead itself.
    for _ in range(3):
        last.next()
    with pytest.raises(steelyard.StalenessError, match="join with reports=False"):
        last.next()
    for session in sessions:
        session.close()


def test_a_process_that_never_reports_is_served_without_end(lab):
    """Beyond the window of steps whose reports are taken, and beyond the steps that a session keeps track of."""
    run = lab.run(batch_size=2)
    with run.join(reports=False, prefetch=64, timeout=60.0) as session:
        for step in range(1100):
            assert session.next().step == step
        assert session.unacknowledged == 0


def test_processes_may_be_far_apart_where_no_draw_waits(lab):
    whole, run = lab.undisturbed(40), lab.run()
    first, middle, last = sessions = stages(run)
    for session, steps in ((first, 40), (last, 10), (middle, 25), (last, 30)):
        for _ in range(steps):
            batch = session.next()
            lab.same(batch, whole[batch.step])
            if session is last:
                last.report(batch, lab.losses(batch))
    leave(sessions)
    assert run.stats().reported_losses == 400


# -- weights -----------------------------------------------------------------------------------------------------------


def test_the_servers_weights_are_the_answer_to_whoever_reports_and_the_others_may_ask_with_the_same_losses(
    lab,
):
    """A process that has no losses reads the weights of the closed step from the run, if it needs them at all."""
    run = lab.run(weigh=LINUPPER)
    first, middle, last = sessions = stages(run)
    for step in range(3):
        one, same, batch = (session.next() for session in sessions)
        expected = weigh.weights(lab.losses(batch), LINUPPER, step=step)
        np.testing.assert_allclose(last.report(batch, lab.losses(batch)), expected, rtol=1e-6)
        np.testing.assert_allclose(middle.report(same, lab.losses(same)), expected, rtol=1e-6)
        np.testing.assert_allclose(run.batch(step).weight, expected, rtol=1e-6)
        assert one.weight.tolist() == [1.0] * 10
    leave(sessions)
    stats = run.stats()
    assert (stats.reported_losses, stats.duplicate_reports, stats.refused_reports) == (30, 3, 0)
    assert first.unacknowledged == 0


def test_weights_that_follow_from_the_draw_come_with_every_process_batch(lab):
    run = lab.run(**SCORED)
    sessions = stages(run)
    for _ in range(5):
        batches = [session.next() for session in sessions]
        for batch in batches:
            np.testing.assert_allclose(batch.weight, 1 / (200 * batch.probability), rtol=1e-6)
        sessions[LAST].report(batches[LAST], lab.losses(batches[LAST]))
    leave(sessions)


def test_a_process_whose_losses_differ_is_refused_and_told_so(lab):
    """Two processes that compute the same loss in another order differ in the last bit: one of them must report."""
    run = lab.run(**SCORED)
    one, two = (run.join(attempt="a", replica=replica, reports=True) for replica in range(2))
    batch, same = one.next(), two.next()
    losses = lab.losses(batch)
    one.report(batch, losses)
    one.flush()
    two.report(same, np.nextafter(losses, np.float32(9)))
    with pytest.raises(steelyard.ReportRefused, match="were reported before with other values"):
        two.flush()
    assert run.stats().reported_losses == 10
    assert [row[-1][1] for row in run.history(batch.ids)] == losses.tolist()
    one.close()
    two.close()


# -- deaths ------------------------------------------------------------------------------------------------------------


def test_a_process_that_dies_stalls_nobody_as_long_as_the_one_that_reports_lives(lab):
    whole, run = lab.undisturbed(10, **SCORED), lab.run(**SCORED)
    sessions = stages(run)
    for step in range(10):
        if step == 3:
            sessions[0].close()
            sessions[0] = run.join(attempt="a", replica=0, reports=False)
            assert sessions[0].step <= step, "where the last that was reported is"
            while sessions[0].step < step:
                sessions[0].next()
        if step == 5:
            sessions.pop(0).close()
        for session in sessions:
            lab.same(batch := session.next(), whole[step])
        sessions[-1].report(batch, lab.losses(batch))
    leave(sessions)
    assert run.stats().reported_losses == 100


def test_when_the_one_that_reports_dies_another_may_take_its_part(lab):
    whole, run = lab.undisturbed(10, **SCORED), lab.run(**SCORED)
    first, middle, last = stages(run)
    for step in range(4):
        lab.same(first.next(), whole[step])
        lab.same(batch := last.next(), whole[step])
        last.report(batch, lab.losses(batch))
    last.flush()
    last.close()
    again = run.join(attempt="a", replica=7, reports=True)
    for step in range(4, 10):
        lab.same(first.next(), whole[step])
        lab.same(batch := again.next(), whole[step])
        again.report(batch, lab.losses(batch))
    leave([first, middle, again])


def test_a_step_whose_reporter_is_gone_is_closed_after_the_timeout_though_its_rank_is_connected(
    lab, eventually
):
    run = lab.run(**{**SCORED, "staleness": 0, "report_timeout": 0.3})
    first, middle, last = stages(run)
    batch = last.next()
    last.report(batch, lab.losses(batch))
    last.leave()
    assert [first.next().step for _ in range(3)] == [0, 1, 2]
    eventually(lambda: run.stats().closed_by_timeout == 2)
    first.close()
    middle.close()


# -- the batch sampler of a trainer in torch ---------------------------------------------------------------------------


def test_a_pipeline_of_batch_samplers_trains_with_the_losses_of_its_last_stage(lab):
    torch = pytest.importorskip("torch")
    from steelyard.torch import BatchSampler

    whole, run = lab.undisturbed(8, **SCORED), lab.run(**SCORED)
    first = BatchSampler(run, attempt="a", replica=0, reports=False, steps=8)
    last = BatchSampler(run, attempt="a", replica=1, reports=True, steps=8)
    for step, (ids, same) in enumerate(zip(first, last, strict=True)):
        assert ids == same == whole[step].ids.tolist()
        last.update(torch.from_numpy(lab.losses(whole[step])), ids=same)
        first.advance()
        assert first.step == last.step == step + 1
    assert first.state_dict() == last.state_dict() == {**last.state_dict(), "step": 8}
    with pytest.raises(steelyard.FailedPrecondition, match="no batch lacks losses"):
        first.advance()
    with pytest.raises(
        steelyard.FailedPrecondition, match=r"expected update\(\) or report\(\).*got advance\(\)"
    ):
        last.advance()
    first.close()
    last.close()
    assert run.stats().reported_losses == 80


def test_a_loader_of_a_stage_that_does_not_report_may_take_as_far_ahead_as_it_likes(lab):
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader

    from steelyard.torch import BatchSampler

    whole, run = lab.undisturbed(20), lab.run(staleness=0)
    sampler = BatchSampler(run, attempt="a", replica=0, reports=False, steps=20)
    served = []
    examples: Any = range(200)
    for ids in DataLoader(examples, batch_sampler=sampler, num_workers=0):
        served.append(ids.tolist())
        sampler.update(
            torch.ones(10), ids=ids
        )  # it may have losses too: they weigh here and are not reported
    assert served == [batch.ids.tolist() for batch in whole]
    sampler.close()
    assert run.stats().reported_losses == 0
