"""Bounded staleness: a draw knows exactly what it is said to know; whoever takes more ahead is told at once."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard.testing import ServerProcess, server

SCORED = {"draw": {"method": "scored", "score": "last_loss", "floor": 0.1}}


def fold(lab, batches):
    """float32[200]: the last loss of each example after these batches, NaN where there is none."""
    column = np.full(200, np.nan, np.float32)
    for batch in batches:
        column[batch.ids] = lab.losses(batch)
    return column


@pytest.mark.parametrize("k", [0, 1, 3, 8])
def test_a_draw_knows_the_reports_of_exactly_the_steps_up_to_t_minus_1_minus_k(lab, k):
    """`state_version` says how many, and the run's column is folded from those steps and no other."""
    run = lab.run(**SCORED, staleness=k)
    seen = []
    with run.join(prefetch=1, timeout=60.0) as session:
        for step in range(k + 8):
            batch = session.next()
            assert batch.state_version == max(0, step - k)
            seen.append(batch)
            session.report(batch, lab.losses(batch))
            session.flush()
            # The draw of the step after it was made, and is the newest: it has folded all that it may know.
            stats = run.stats()
            assert stats.next_step == step + 2
            assert stats.folded_steps == stats.state_version == max(0, step + 1 - k)
            np.testing.assert_array_equal(run.column("last_loss"), fold(lab, seen[: stats.folded_steps]))
    assert run.batch(k + 5).state_version == 5


@pytest.mark.parametrize("staleness", [0, 5, "any"])
def test_the_staleness_is_among_the_stats_beside_what_the_draws_know(lab, staleness):
    run = lab.run(**SCORED, staleness=staleness)
    stats = run.stats()
    assert (stats.staleness, stats.state_version) == (staleness, 0)


@pytest.mark.parametrize("k", [1, 5, 8])
def test_with_staleness_k_the_next_k_batches_are_there_before_a_step_is_reported(lab, k, eventually):
    """So a trainer never waits once they are there, as long as a report takes less than k steps to arrive.

    Of k >= 8 a quarter may be missing: credit is granted when that much is free, for fewer messages.
    """
    run = lab.run(**SCORED, staleness=k)
    with run.join(timeout=60.0) as session:
        assert session.prefetch == k
        buffered = session._member.ledger.buffered
        for step in range(12):
            batch = session.next()
            # All that can be drawn without the report of this step is drawn, and comes: k batches.
            eventually(lambda: len(buffered) > k - max(1, k // 4))
            assert [one.step for one in buffered] == list(range(step + 1, step + 1 + len(buffered)))
            assert run.info().next_step <= step + 1 + k, "and no more than that"
            session.report(batch, lab.losses(batch))
            session.flush()


def test_a_trainer_whose_pipe_is_full_never_waits(lab, eventually):
    """Counted: of 40 steps, each as long as a report and a batch take, none finds its batch missing."""
    run = lab.run(**SCORED, staleness=8)
    with run.join(timeout=60.0) as session:
        buffered = session._member.ledger.buffered
        eventually(lambda: len(buffered) == 8)
        missing, unreported = 0, []
        for _ in range(40):
            missing += not buffered
            unreported.append(session.next())
            if len(unreported) > 4:  # its losses come back some steps late
                session.report(unreported[0], lab.losses(unreported.pop(0)))
                eventually(lambda: len(buffered) >= 6 - len(unreported))
        assert missing == 0
        session.close()


# -- taking more ahead than the staleness ------------------------------------------------------------------------------


def told(error, k):
    text = str(error.value)
    assert f"(staleness {k})" in text
    assert f"{k + 1} batches are handed out and unreported, where staleness {k} allows {k}" in text
    for way in (
        f"(1) take fewer batches ahead, with a DataLoader: prefetch_factor * num_workers at most {k}",
        "(2) make the run with a staleness of at least what is taken ahead",
        '(3) make it with staleness="any"',
    ):
        assert way in text
    return text


def test_a_session_that_takes_more_ahead_is_told_both_numbers_and_three_ways_out_at_once(lab):
    with lab.run(**SCORED, staleness=3).join(timeout=60.0) as session:
        batches = [session.next() for _ in range(4)]
        began = time.monotonic()
        with pytest.raises(steelyard.StalenessError) as error:
            session.next()
        assert time.monotonic() - began < 5
        told(error, 3)
        session.report(batches[0], lab.losses(batches[0]))
        assert session.next().step == 4, "and goes on after the report"


@pytest.mark.parametrize("staleness", [4, "any"])
def test_each_way_out_leads_out_of_a_session(lab, staleness):
    """Fewer ahead is the test above; here the run is made with more, or any."""
    with lab.run(**SCORED, staleness=staleness).join(timeout=60.0) as session:
        batches = [session.next() for _ in range(5)]
        assert [batch.step for batch in batches] == list(range(5))
        session.close()


@pytest.fixture(scope="module")
def beside(tmp_path_factory, lab_of):
    """A server in a process of its own, as loaders fork their workers from this one."""
    with ServerProcess(tmp_path_factory.mktemp("beside")) as process, process.client() as client:
        yield lab_of(client)


def loader_of(run: steelyard.Run, workers: int, factor: int | None, micro_batches: int = 1) -> Any:
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader

    from steelyard.torch import BatchSampler

    sampler = BatchSampler(run, steps=6, micro_batches=micro_batches)
    examples: Any = range(200)
    return (
        torch,
        sampler,
        DataLoader(examples, batch_sampler=sampler, num_workers=workers, prefetch_factor=factor),
    )


of_forks = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",
)


@of_forks
def test_a_loader_that_takes_more_ahead_is_told_both_numbers_and_three_ways_out_before_its_first_batch(
    beside,
):
    _, sampler, loader = loader_of(beside.run(**SCORED, staleness=3), workers=2, factor=2)
    with sampler, pytest.raises(steelyard.StalenessError) as error:
        next(iter(loader))
    told(error, 3)
    _, sampler, loader = loader_of(beside.run(**SCORED, staleness=3), workers=2, factor=4, micro_batches=2)
    with sampler, pytest.raises(steelyard.StalenessError) as error:
        next(iter(loader))
    assert "in (1) prefetch_factor * num_workers may be at most 2 times the staleness" in told(error, 3)


@of_forks
@pytest.mark.parametrize(
    ("staleness", "workers", "factor"),
    [(3, 1, 3), (4, 2, 2), ("any", 2, 2), (0, 0, None)],
    ids=["fewer ahead", "larger staleness", "any", "none ahead"],
)
def test_each_way_out_leads_out_of_a_loader(beside, staleness, workers, factor):
    torch, sampler, loader = loader_of(beside.run(**SCORED, staleness=staleness), workers, factor)
    with sampler:
        for ids in loader:
            sampler.update(torch.ones(10), ids=ids)
        assert sampler.step == 6


def test_a_report_that_comes_late_weighs_nothing_whatever_the_rule(tmp_path):
    with server(tmp_path / "s") as client:
        client.create_dataset("d", 40)
        for name, weigh in (("drawn", {"method": "importance"}), ("losses", {"method": "linupper"})):
            draw = {"method": "scored"} if name == "drawn" else {"method": "shuffle"}
            run = client.create_run(
                name, dataset="d", batch_size=4, draw=draw, weigh={**weigh, "where": "server"}
            )
            with run.join() as session:
                batch = session.next()
                session.report_raw(batch, [1.0], offset=0)
                session.flush()
                run.close_step(batch.step)
                weights = session.report_raw(batch, [1.0, 2.0, 3.0, 4.0], want_weights=True).result()
                assert weights.tolist() == [0.0] * 4, name
                assert session.late_reports == 1
