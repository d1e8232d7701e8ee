"""Ids through a DataLoader: each once, in order, none lost when a loop is left."""

import itertools
import os
import pickle
import threading
from typing import cast

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from steelyard import FailedPrecondition, ForkedSession, InvalidArgument, SessionClosed
from steelyard.torch import BatchSampler


def losses_of(ids):
    return ids.float() + 0.5


def served(run, steps, first=0):
    return [run.batch(step).ids.tolist() for step in range(first, first + steps)]


@pytest.mark.parametrize(
    ("size", "batch_size", "world_size"), [(23, 5, 1), (23, 7, 3), (10, 10, 4), (9, 2, 2)]
)
def test_every_id_is_served_once_an_epoch_for_awkward_sizes(examples, make_run, size, batch_size, world_size):
    run = make_run(size, batch_size=batch_size, seed=3)
    epochs = 3
    steps = size * epochs // batch_size
    parts: list[list[list[int]]] = []
    samplers = [
        BatchSampler(run, rank=rank, world_size=world_size, attempt="a", steps=steps)
        for rank in range(world_size)
    ]
    loaders = [DataLoader(examples, batch_sampler=sampler) for sampler in samplers]
    for batches in zip(*loaders, strict=True):
        for sampler, ids in zip(samplers, batches, strict=True):
            sampler.update(losses_of(ids), ids=ids)
        parts.append([ids.tolist() for ids in batches])
    for sampler in samplers:
        sampler.close()
    assert [list(itertools.chain(*slices)) for slices in parts] == served(run, steps)
    assert {tuple(map(len, slices)) for slices in parts} == {
        tuple(batch_size // world_size + (rank < batch_size % world_size) for rank in range(world_size))
    }
    flat = list(itertools.chain(*itertools.chain(*parts)))
    whole_epochs = len(flat) // size
    assert whole_epochs >= epochs - 1
    for epoch in range(whole_epochs):
        assert sorted(flat[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert run.stats().reported_losses == len(flat)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_loop_that_is_left_early_loses_and_repeats_nothing(examples, make_run, workers, micro_batches):
    run = make_run(40, batch_size=5)
    trained = []
    with BatchSampler(run, micro_batches=micro_batches) as sampler:
        loader = DataLoader(examples, batch_sampler=sampler, num_workers=workers)
        # Leaves the loop after 1, 4, 2 and 3 batches: while a batch is in hand untrained, and, with two
        # micro-batches, between those of one step.
        for count in (1, 4, 2, 3):
            for at, ids in enumerate(loader):
                if at == count:
                    break
                sampler.update(losses_of(ids), ids=ids)
                trained += ids.tolist()
        assert sampler.step == 10 // micro_batches
        assert sampler.state_dict()["step"] == sampler.step
    assert trained == list(itertools.chain(*served(run, 10)))[: len(trained)]
    assert len(trained) == 50 // micro_batches
    assert run.stats().reported_losses == len(trained)


def test_a_loader_that_keeps_its_workers_begins_again_where_training_stopped(examples, make_run):
    run = make_run(40)
    trained = []
    with BatchSampler(run, steps=5) as sampler:
        loader = DataLoader(examples, batch_sampler=sampler, num_workers=2, persistent_workers=True)
        for leave_after in (2, 5, 5):
            for ids in itertools.islice(loader, leave_after):
                sampler.update(losses_of(ids), ids=ids)
                trained.append(ids.tolist())
    assert trained == served(run, 12)


def test_an_iteration_has_as_many_steps_as_it_was_told(examples, make_run):
    run = make_run()
    with BatchSampler(run, steps=3, micro_batches=2) as sampler:
        loader = DataLoader(examples, batch_sampler=sampler)
        assert len(sampler) == len(loader) == 6
        assert [len(ids) for ids in loader] == [2] * 6
        assert sampler.session is not None
        assert sampler.session.step == 3, "no batch is taken beyond the end"
        assert sampler.step == 0


def test_an_endless_sampler_has_no_length(make_run):
    with (
        BatchSampler(make_run()) as sampler,
        pytest.raises(TypeError, match="endless and has no length; make it with steps"),
    ):
        len(sampler)


def test_micro_batches_are_the_slice_in_order(make_run):
    run = make_run(batch_size=7)
    with BatchSampler(run, steps=2, micro_batches=3) as sampler:
        parts = list(sampler)
    assert [len(part) for part in parts] == [3, 2, 2] * 2
    assert [sum(parts[:3], []), sum(parts[3:], [])] == served(run, 2)  # noqa: RUF017
    assert all(type(one) is int for part in parts for one in part)


def test_more_micro_batches_than_positions_are_refused(make_run):
    sampler = BatchSampler(make_run(batch_size=7), rank=0, world_size=2, attempt="a", micro_batches=4)
    with pytest.raises(
        InvalidArgument, match="expected at most 3, the smallest slice of a batch of 7 for 2 ranks, got 4"
    ):
        next(iter(sampler))
    assert sampler.session is None


def test_an_older_iteration_is_over_and_says_so(make_run):
    with BatchSampler(make_run()) as sampler:
        old = iter(sampler)
        first = next(old)
        new = iter(sampler)
        with pytest.raises(FailedPrecondition, match="a newer one of the same sampler has begun"):
            next(old)
        assert next(new) == first, "served again, because it was not reported"


def test_an_iteration_goes_on_after_an_error(make_run, scored):
    run = make_run(draw=scored, staleness=1)
    with BatchSampler(run) as sampler:
        batches = iter(sampler)
        for _ in range(2):
            next(batches)
        for _ in range(2):
            with pytest.raises(FailedPrecondition):
                next(batches)
        sampler.update(torch.ones(4))
        assert len(next(batches)) == 4


def test_it_joins_when_the_first_batch_is_asked_for(make_run):
    run = make_run()
    with BatchSampler(run) as sampler:
        batches = iter(sampler)
        assert sampler.session is None
        assert run.stats().connected_ranks == 0
        next(batches)
        assert sampler.session is not None
        assert sampler.session.attempt
        assert run.stats().connected_ranks == 1
        assert sampler.waited_seconds > 0
    assert run.stats().connected_ranks == 0


def test_iterating_and_reporting_may_be_in_two_threads(make_run):
    run = make_run(400)
    taken: list[list[int]] = []
    ready = threading.Semaphore(0)
    with BatchSampler(run, steps=100) as sampler:

        def take():
            for ids in sampler:
                taken.append(ids)
                ready.release()

        thread = threading.Thread(target=take)
        thread.start()
        for step in range(100):
            assert ready.acquire(timeout=30)
            sampler.report(torch.ones(4), ids=taken[step])
        thread.join(30)
        assert sampler.step == 100
    assert taken == served(run, 100)


def test_a_closed_sampler_says_so(make_run):
    sampler = BatchSampler(make_run())
    next(iter(sampler))
    sampler.close()
    sampler.close()
    for call in (lambda: iter(sampler), sampler.state_dict, lambda: sampler.report(torch.ones(4))):
        with pytest.raises(SessionClosed, match="was closed"):
            call()


def test_it_does_not_pickle(make_run):
    with pytest.raises(TypeError, match="a dataset need not hold its sampler"):
        pickle.dumps(BatchSampler(make_run()))


class HoldsItsSampler(Dataset[str]):
    def __init__(self, sampler):
        self.sampler = sampler

    def __getitem__(self, at):
        try:
            next(iter(self.sampler))
        except ForkedSession as error:
            return str(error)
        return "served"


def test_a_worker_that_uses_the_sampler_is_told_at_once(make_run):
    with BatchSampler(make_run(), steps=1) as sampler:
        loader: DataLoader[str] = DataLoader(
            HoldsItsSampler(sampler), batch_sampler=sampler, num_workers=1, multiprocessing_context="fork"
        )
        (messages,) = list(loader)
    assert all(f"belongs to process {os.getpid()} that made it" in one for one in messages)


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_of_every_kind_get_their_ids(make_run, context):
    run = make_run()
    with BatchSampler(run, steps=2) as sampler:
        loader: DataLoader[int] = DataLoader(
            cast("Dataset[int]", range(24)),  # pickles, as what a worker is started with must
            batch_sampler=sampler,
            num_workers=1,
            multiprocessing_context=context,
        )
        assert [ids.tolist() for ids in loader] == served(run, 2)
