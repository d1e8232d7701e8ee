"""What a checkpoint holds, and going on from it."""

import io
import json
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from steelyard import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    SessionClosed,
    StalenessError,
)
from steelyard.torch import BatchSampler


def losses_of(ids):
    return (ids.float() * 0.37) % 1.0 + 0.1


def train(sampler, batches, count):
    """Trains `count` batches; the ids of each."""
    trained = []
    for _ in range(count):
        ids = next(batches)
        sampler.update(losses_of(ids), ids=ids)
        trained.append(ids.tolist())
    return trained


@pytest.fixture(params=["shuffle", "scored"])
def run(request, make_run, scored):
    draw = {"method": "shuffle"} if request.param == "shuffle" else scored
    return make_run(40, batch_size=5, draw=draw, staleness=4, seed=7)


def test_a_state_counts_what_was_trained_and_a_resumed_run_goes_on_exactly(examples, make_run, run):
    info = run.info()
    twin = make_run(40, batch_size=5, draw=info.draw, staleness=4, seed=7)
    with BatchSampler(twin) as sampler:
        expected = train(sampler, iter(DataLoader(examples, batch_sampler=sampler)), 9)

    sampler = BatchSampler(run)
    batches = iter(DataLoader(examples, batch_sampler=sampler, num_workers=2, prefetch_factor=2))
    trained = train(sampler, batches, 3)
    state = sampler.state_dict()
    assert state == {"version": 1, "run": run.name, "step": 3}
    assert sampler.session is not None
    assert sampler.session.step > 3, "the loader took batches ahead"
    assert run.info().closed_steps == 3, "what the state counts is durable"
    train(sampler, batches, 2)  # trained after the checkpoint, and lost with it
    del batches

    with BatchSampler(run) as resumed:
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert resumed.step == 3
        batches = iter(DataLoader(examples, batch_sampler=resumed, num_workers=2))
        trained += train(resumed, batches, 6)
        assert resumed.state_dict()["step"] == 9
        with pytest.raises(Aborted, match="has begun at step 3"):
            sampler.state_dict()  # the first trainer is a zombie now
    assert trained == expected
    assert [run.batch(step).ids.tolist() for step in range(9)] == expected


def test_a_state_may_be_loaded_while_iterating(examples, run):
    with BatchSampler(run) as sampler:
        batches = iter(DataLoader(examples, batch_sampler=sampler, num_workers=1))
        first = train(sampler, batches, 4)
        state = sampler.state_dict()
        second = train(sampler, batches, 3)
        attempts = {sampler.session.attempt} if sampler.session else set()
        for _ in range(2):
            sampler.load_state_dict(state)
            assert sampler.session is None
            with pytest.raises(FailedPrecondition, match="or a state was loaded"):
                train(sampler, batches, 10)
            batches = iter(DataLoader(examples, batch_sampler=sampler, num_workers=1))
            assert train(sampler, batches, 3) == second
            assert sampler.session is not None
            attempts.add(sampler.session.attempt)
        assert len(attempts) == 3
    assert [run.batch(step).ids.tolist() for step in range(7)] == first + second


def test_another_number_of_ranks_goes_on_from_the_same_state(examples, make_run):
    run = make_run(24, batch_size=6)
    with BatchSampler(run) as sampler:
        batches = iter(DataLoader(examples, batch_sampler=sampler))
        train(sampler, batches, 2)
        state = sampler.state_dict()
    samplers = [BatchSampler(run, rank=rank, world_size=3, attempt="wide") for rank in range(3)]
    for sampler in samplers:
        sampler.load_state_dict(state)
    loaders = [iter(DataLoader(examples, batch_sampler=sampler)) for sampler in samplers]
    for _ in range(2):
        for sampler, batches in zip(samplers, loaders, strict=True):
            train(sampler, batches, 1)
    assert [sampler.state_dict() for sampler in samplers] == [{**state, "step": 4}] * 3
    for sampler in samplers:
        sampler.close()
    served = [one for step in range(4) for one in run.batch(step).ids.tolist()]
    assert sorted(served) == list(range(24))


def test_a_state_in_the_middle_of_a_step_counts_whole_steps(examples, make_run):
    run = make_run()
    with BatchSampler(run, micro_batches=2) as sampler:
        batches = iter(DataLoader(examples, batch_sampler=sampler))
        train(sampler, batches, 3)
        state = sampler.state_dict()
        assert state["step"] == 1
        (rest,) = train(sampler, batches, 1)
        sampler.load_state_dict(state)
        batches = iter(DataLoader(examples, batch_sampler=sampler))
        assert train(sampler, batches, 2)[1] == rest


def test_a_state_before_the_first_batch_is_where_a_join_would_begin(examples, make_run):
    run = make_run()
    assert BatchSampler(run).state_dict()["step"] == 0
    assert BatchSampler(run, start_step=5).state_dict()["step"] == 5
    with BatchSampler(run) as sampler:
        train(sampler, iter(DataLoader(examples, batch_sampler=sampler)), 2)
    assert BatchSampler(run).state_dict()["step"] == 2
    with BatchSampler(run, start_step=1) as sampler:
        assert next(iter(sampler)) == run.batch(1).ids.tolist()


def test_a_state_is_small(make_run):
    state = BatchSampler(make_run()).state_dict()
    assert len(json.dumps(state)) < 200
    longest = {**state, "run": "r" * 128, "step": 2**63, "end": 2**63}
    assert len(json.dumps(longest)) < 300
    assert len(pickle.dumps(longest)) < 300

    def saved(what):
        torch.save(what, file := io.BytesIO())
        return file.tell()

    # A file of torch's own holds 1.2 kB before anything is in it.
    assert saved({"sampler": longest}) - saved({}) < 400


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"version": 1, "run": "another", "step": 3},
            "expected one of run 'r.*', .* got one of run 'another'",
        ),
        ({"version": 2, "run": "another", "step": 3}, "expected version 1, .* got 2"),
        ({"epoch": 3}, "expected what state_dict\\(\\) returned"),
        ([], "expected what state_dict\\(\\) returned"),
    ],
)
def test_what_is_not_a_state_of_this_run_is_refused_and_changes_nothing(make_run, state, message):
    with BatchSampler(make_run()) as sampler:
        ids = iter(sampler)
        next(ids)
        with pytest.raises(InvalidArgument, match=message):
            sampler.load_state_dict(state)
        next(ids)


def test_a_step_that_is_not_a_number_is_refused(make_run):
    run = make_run()
    with pytest.raises(InvalidArgument, match="state: step: expected an integer"):
        BatchSampler(run).load_state_dict({"version": 1, "run": run.name, "step": -1})


def test_a_loader_that_takes_more_ahead_than_the_staleness_is_told_at_once(examples, make_run, scored):
    run = make_run(draw=scored, staleness=3)
    with BatchSampler(run) as sampler:
        loader = DataLoader(examples, batch_sampler=sampler, num_workers=2, prefetch_factor=2)
        with pytest.raises(StalenessError, match="prefetch_factor \\* num_workers"):
            next(iter(loader))
    with BatchSampler(run, micro_batches=2) as sampler:
        loader = DataLoader(examples, batch_sampler=sampler, num_workers=4, prefetch_factor=2)
        with pytest.raises(StalenessError, match="may be at most 2 times the staleness"):
            next(iter(loader))


@pytest.mark.parametrize(("workers", "factor"), [(3, 1), (1, 3)])
def test_a_loader_that_takes_as_much_ahead_as_the_staleness_trains(
    examples, make_run, scored, workers, factor
):
    run = make_run(draw=scored, staleness=3)
    with BatchSampler(run, steps=12) as sampler:
        for ids in DataLoader(
            examples,
            batch_sampler=sampler,
            num_workers=workers,
            prefetch_factor=factor,
        ):
            sampler.update(losses_of(ids), ids=ids)
        assert sampler.state_dict()["step"] == 12
    assert run.stats().reported_losses == 48


def test_an_error_inside_the_block_ends_the_session_at_once(make_run):
    run = make_run()
    sampler = BatchSampler(run)
    next(iter(sampler))
    session = sampler.session
    with pytest.raises(RuntimeError, match="out of memory"), sampler:
        raise RuntimeError("out of memory")
    assert sampler.session is None
    assert session is not None
    with pytest.raises(SessionClosed):
        session.next()
    with pytest.raises(SessionClosed):
        sampler.update(torch.ones(4))


def test_a_state_of_one_rank_waits_until_all_ranks_have_reported_what_it_counts(make_run):
    run = make_run()
    first, second = (
        BatchSampler(run, rank=rank, world_size=2, attempt="a", timeout=20.0) for rank in range(2)
    )
    for sampler in (first, second):
        next(iter(sampler))
    first.update(torch.ones(2))
    states: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: states.append(first.state_dict()))
    asking.start()
    asking.join(0.3)
    assert not states, "the other half of step 0 could still be lost"
    second.update(torch.ones(2))
    asking.join(20)
    assert states == [{"version": 1, "run": run.name, "step": 1}]
    assert run.info().closed_steps == 1
    for sampler in (first, second):
        sampler.close()


def test_a_state_that_waits_for_a_rank_says_which_step_lacks_its_losses(make_run):
    run = make_run()
    first = BatchSampler(run, rank=0, world_size=2, attempt="a", timeout=0.5)
    ids = iter(first)
    for _ in range(2):
        next(ids)
        first.update(torch.ones(2))
    with pytest.raises(DeadlineExceeded, match="the steps below 2, .* those of others lack step 0"):
        first.state_dict()
    with BatchSampler(run) as newer:
        next(iter(newer))
        with pytest.raises(Aborted):
            first.state_dict()


def test_a_state_loaded_after_much_more_training_gives_the_batches_and_columns_of_its_step(make_run, scored):
    """Trained to step 950 and restored at 500, by another number of ranks."""
    options: dict[str, Any] = {"batch_size": 4, "draw": scored, "staleness": 3, "seed": 5}
    run, twin = make_run(60, **options), make_run(60, **options)

    def loss(ids, step):
        return ((torch.as_tensor(ids) * 7 + step * 3) % 11 + 1.0) / 4

    def play(samplers, count):
        passes = [iter(sampler) for sampler in samplers]
        for _ in range(count):
            for sampler, ids in zip(samplers, passes, strict=True):
                step = sampler.step
                sampler.update(loss(next(ids), step))

    with BatchSampler(twin) as sampler:
        play([sampler], 520)
    with BatchSampler(run) as sampler:
        play([sampler], 500)
        state = json.dumps(sampler.state_dict())
        play([sampler], 450)
        later = [run.batch(step).ids.tolist() for step in range(500, 520)]
        assert sampler.step == 950

    ranks = [BatchSampler(run, rank=rank, world_size=3, attempt="again") for rank in range(3)]
    for sampler in ranks:
        sampler.load_state_dict(json.loads(state))
    play(ranks, 20)
    for sampler in ranks:
        sampler.close()
    for step in [*range(0, 480, 16), *range(480, 520)]:
        mine, theirs = run.batch(step), twin.batch(step)
        assert mine.digest == theirs.digest
        np.testing.assert_array_equal(mine.probability, theirs.probability)
    assert [run.batch(step).ids.tolist() for step in range(500, 520)] == later, (
        "the same losses lead there again"
    )
    assert run.info().closed_steps == twin.info().closed_steps == 520
    assert run.history(range(60)) == twin.history(range(60))
    for one in (run, twin):
        # The draw of the next step folds what it may know, up to the same step in both.
        with one.join(prefetch=1) as session:
            session.next()
    np.testing.assert_array_equal(run.column("last_loss"), twin.column("last_loss"))


def test_a_fork_goes_on_from_its_parents_state_where_it_was_forked(examples, run):
    with BatchSampler(run) as sampler:
        batches = iter(DataLoader(examples, batch_sampler=sampler))
        train(sampler, batches, 3)
        state = sampler.state_dict()
        expected = train(sampler, batches, 4)
    fork = run.fork(f"{run.name}-fork", step=3)
    with BatchSampler(fork) as sampler:
        sampler.load_state_dict(state)
        assert train(sampler, iter(DataLoader(examples, batch_sampler=sampler)), 4) == expected
        with pytest.raises(
            InvalidArgument, match="A fork goes on from its parent's state where it was forked"
        ):
            sampler.load_state_dict({**state, "step": 4})
