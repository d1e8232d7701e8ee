"""Any step: a run goes on from any retained one with the state of that moment and of no later one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard.testing import ServerProcess, server

SCORED = {"method": "scored", "score": "last_loss", "floor": 0.1}
OTHER = {"method": "scored", "score": "ema_loss", "alpha": 2.0, "floor": 0.2}
POLICIES: dict[str, dict[str, Any]] = {
    "shuffle": {"draw": {"method": "shuffle"}},
    "k=0": {"draw": SCORED, "staleness": 0},
    "k=3": {"draw": SCORED, "weigh": {"method": "importance"}, "staleness": 3},
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
IDS = np.arange(200)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, lab_of):
    """A server that makes checkpoints all the time, so that going back begins at one as often as at the creation."""
    with server(tmp_path_factory.mktemp("server"), checkpoint_interval_seconds=0.2) as client:
        yield lab_of(client)


def column(lab, batches):
    """float32[200]: the last loss of each example after the reports of these batches, NaN where there is none."""
    values = np.full(200, np.nan, np.float32)
    for batch in batches:
        values[batch.ids] = lab.losses(batch)
    return values


def history(lab, batches):
    """The last 8 (step, loss) of each example, from these batches."""
    rows: list[list[tuple[int, float]]] = [[] for _ in IDS]
    for batch in batches:
        for one, loss in zip(batch.ids.tolist(), lab.losses(batch).tolist(), strict=True):
            rows[one].append((batch.step, loss))
    return [row[-8:] for row in rows]


def trained(lab, steps, policy, **options):
    run = lab.run(**policy)
    with run.join(timeout=60.0, **options) as session:
        lab.train([session], lab.undisturbed(steps, **policy), range(steps))
    return run


def check_as_of(lab, run, whole, step):
    """The run is as one that never went past `step`: its columns, its histories, what it counts."""
    stats = run.stats()
    assert stats.closed_steps == step
    assert stats.reported_losses == 10 * step
    assert run.history(IDS) == history(lab, whole[:step])
    if stats.staleness != 16:
        k = stats.staleness
        assert stats.folded_steps == max(0, stats.next_step - 1 - k)
        np.testing.assert_array_equal(run.column("last_loss"), column(lab, whole[: stats.folded_steps]))


# -- from a trainer's checkpoint ---------------------------------------------------------------------------------------


@every_policy
def test_a_checkpoint_goes_on_with_its_own_batches_and_columns_on_another_world_size(lab, policy):
    """Trained to step 38 by four ranks, restored at 20 by three; then at 20 once more, by one."""
    whole, run = lab.undisturbed(38, **policy), lab.run(**policy)
    four = lab.ranks(run, 4)
    lab.train(four, whole, range(38))
    lab.leave(four)
    for world_size in (3, 1):
        ranks = lab.ranks(run, world_size, start_step=20, prefetch=1)
        check_as_of(lab, run, whole, 20)
        lab.train(ranks, whole, range(20, 38))
        lab.leave(ranks)
        check_as_of(lab, run, whole, 38)


def test_a_checkpoint_is_small_and_knows_no_machine(lab):
    """It is a name and a step: what it leads to is in the run, also after the server's end and on another port."""
    pytest.importorskip("torch")
    from steelyard.torch import BatchSampler

    whole, run = lab.undisturbed(12, **POLICIES["k=3"]), lab.run(**POLICIES["k=3"])
    with BatchSampler(run, steps=9) as sampler:
        for step, ids in enumerate(sampler):
            assert ids == whole[step].ids.tolist()
            sampler.report(torch_losses(lab, whole[step]), ids=ids)
            if step == 4:
                state = json.dumps(sampler.state_dict())
    assert len(state) < 1024
    samplers = [BatchSampler(run, rank=rank, world_size=2, attempt="new", steps=7) for rank in range(2)]
    for sampler in samplers:
        sampler.load_state_dict(json.loads(state))
    for step, parts in enumerate(zip(*samplers, strict=True), 5):
        assert [one for part in parts for one in part] == whole[step].ids.tolist()
        for sampler, part in zip(samplers, parts, strict=True):
            first = 5 * sampler.rank
            sampler.report(torch_losses(lab, whole[step])[first : first + 5], ids=part)
    for sampler in samplers:
        sampler.close()
    check_as_of(lab, run, whole, 12)


def torch_losses(lab, batch):
    import torch

    return torch.from_numpy(lab.losses(batch))


def test_under_any_the_columns_of_a_step_are_those_of_all_reports_of_the_steps_before_it(lab):
    """Also of those that arrived after its draw; so the step itself may be drawn again otherwise: it is told so."""
    run = lab.run(draw=SCORED, staleness="any")
    served = []
    with run.join(attempt="one", prefetch=1) as session:
        for _ in range(20):
            served.append(session.next())
            session.report(served[-1], lab.losses(served[-1]))
    with run.join(attempt="two", start_step=12, prefetch=1) as session:
        assert run.history(IDS) == history(lab, served[:12])
        np.testing.assert_array_equal(run.column("last_loss"), column(lab, served[:12]))
        batch = session.next()
        assert (batch.step, batch.state_version) == (12, 12)
        session.report(batch, lab.losses(batch))


# -- by the owner ------------------------------------------------------------------------------------------------------


@every_policy
def test_a_run_can_be_taken_back_to_each_of_60_steps_and_draws_what_followed(lab, policy):
    whole = lab.undisturbed(60, **policy)
    run = trained(lab, 60, policy)
    for step in reversed(range(60)):
        info = run.rewind(step)
        assert (info.next_step, info.closed_steps) == (step, step)
        check_as_of(lab, run, whole, step)
        if step % 7 == 0:
            with run.join(prefetch=1, timeout=60.0) as session:
                lab.train([session], whole, range(step, step + 2))
            run.rewind(step)
            check_as_of(lab, run, whole, step)
    with run.join(timeout=60.0) as session:
        lab.train([session], whole, range(60))
    check_as_of(lab, run, whole, 60)


def test_a_bookmark_leads_back_and_those_beyond_it_go(lab):
    policy = POLICIES["k=3"]
    whole, run = lab.undisturbed(30, **policy), lab.run(**policy)
    with run.join(timeout=60.0) as session:
        for step in range(30):
            lab.train([session], whole, [step])
            if step % 10 == 9:
                session.flush()
                assert run.bookmark(f"epoch-{step // 10}") == step + 1
    run.rewind("epoch-1")
    assert dict(run.info().bookmarks) == {"epoch-0": 10, "epoch-1": 20}
    check_as_of(lab, run, whole, 20)
    run.rewind("epoch-0")
    check_as_of(lab, run, whole, 10)
    with run.join(timeout=60.0) as session:
        lab.train([session], whole, range(10, 30))


def test_a_server_that_was_killed_goes_back_to_the_same_moments(tmp_path, lab_of):
    policy = POLICIES["k=3"]
    with ServerProcess(tmp_path, checkpoint_interval_seconds=0.2) as process:
        lab = lab_of(process.client())
        whole = lab.undisturbed(30, **policy)
        run = trained(lab, 30, policy)
        for step in (23, 9):
            process.kill()
            process.start()
            run.rewind(step)
            process.kill()
            process.start()
            check_as_of(lab, run, whole, step)
        with run.join(timeout=60.0) as session:
            lab.train([session], whole, range(9, 30))


# -- forks -------------------------------------------------------------------------------------------------------------


@every_policy
def test_a_fork_with_the_same_policy_goes_on_for_30_steps_as_its_parent_did(lab, policy):
    whole = lab.undisturbed(44, **policy)
    run = trained(lab, 40, policy)
    fork = run.fork(f"{run.name}-fork", step=10)
    assert (fork.info().parent, fork.info().parent_step) == (run.name, 10)
    check_as_of(lab, fork, whole, 10)
    ranks = lab.ranks(fork, 3)
    lab.train(ranks, whole, range(10, 40))
    lab.leave(ranks)
    check_as_of(lab, fork, whole, 40)
    check_as_of(lab, run, whole, 40)
    with run.join(timeout=60.0) as session:  # the parent has noticed nothing
        lab.train([session], whole, range(40, 44))


@every_policy
def test_a_fork_with_another_policy_has_the_same_past_and_differs_from_its_first_step_on(lab, policy):
    whole = lab.undisturbed(30, **policy)
    run = trained(lab, 30, policy)
    forks = [run.fork(f"{run.name}-{number}", step=15, draw=OTHER) for number in range(2)]
    served: list[list[steelyard.Batch]] = []
    for fork in forks:
        assert fork.history(IDS) == history(lab, whole[:15])
        served.append([])
        with fork.join(timeout=60.0) as session:
            for _ in range(10):
                served[-1].append(session.next())
                session.report(served[-1][-1], lab.losses(served[-1][-1]))
    first = served[0][0]
    assert first.step == 15
    assert first.probability.tobytes() != whole[15].probability.tobytes()
    assert all(one.digest != old.digest for one, old in zip(served[0], whole[15:25], strict=True))
    for one, same in zip(*served, strict=True):
        lab.same(one, same)
    assert [run.batch(step).digest for step in range(30)] == [batch.digest for batch in whole]


@every_policy
def test_a_fork_of_a_fork_and_a_fork_at_step_0_are_runs_like_any_other(lab, policy):
    whole = lab.undisturbed(30, **policy)
    run = trained(lab, 20, policy)
    start = run.fork(f"{run.name}-0", step=0)
    check_as_of(lab, start, whole, 0)
    with start.join(timeout=60.0) as session:
        lab.train([session], whole, range(20))
    child = run.fork(f"{run.name}-8", step=8)
    with child.join(timeout=60.0) as session:
        lab.train([session], whole, range(8, 20))
    for step in (8, 14):
        grandchild = child.fork(f"{run.name}-8-{step}", step=step)
        check_as_of(lab, grandchild, whole, step)
        with grandchild.join(timeout=60.0) as session:
            lab.train([session], whole, range(step, 30))
        check_as_of(lab, grandchild, whole, 30)


@every_policy
def test_a_fork_goes_back_as_far_as_its_own_first_step_and_no_further(lab, policy):
    whole = lab.undisturbed(30, **policy)
    run = trained(lab, 20, policy)
    fork = run.fork(f"{run.name}-10", step=10)
    with fork.join(timeout=60.0) as session:
        lab.train([session], whole, range(10, 20))
    for back in (lambda: fork.rewind(9), lambda: fork.fork("never", step=9), lambda: fork.join(start_step=9)):
        with pytest.raises(
            steelyard.FailedPrecondition,
            match=r"expected a step between 10, .* and \d+, the next to draw; got 9",
        ):
            back()
    check_as_of(lab, fork, whole, 20)
    for step in (15, 10):
        fork.rewind(step)
        check_as_of(lab, fork, whole, step)
    with fork.join(timeout=60.0) as session:
        lab.train([session], whole, range(10, 30))
