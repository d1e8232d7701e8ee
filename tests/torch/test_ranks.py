"""Where rank, world size and token come from."""

import pytest
import torch
import torch.distributed as dist

from steelyard import InvalidArgument
from steelyard.torch import BatchSampler
from steelyard.torch.ranks import find_ranks, share_token

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def group_of_one(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'init'}", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_without_a_process_group_this_process_is_alone_unless_told_otherwise():
    ranks = find_ranks(None, None, None)
    assert (ranks.rank, ranks.world_size, ranks.together) == (0, 1, False)
    ranks = find_ranks(2, 3, None)
    assert (ranks.rank, ranks.world_size, ranks.together) == (2, 3, False)


@pytest.mark.parametrize(("rank", "world_size"), [(1, None), (2, 2), (-1, 2), (0, 0), (True, 2), (0.5, 2)])
def test_numbers_that_are_no_rank_are_refused(rank, world_size):
    with pytest.raises(InvalidArgument, match=r"(rank|world_size): expected an integer from"):
        find_ranks(rank, world_size, None)


def test_a_group_of_one_process_has_nobody_to_gather_from(group_of_one):
    ranks = find_ranks(None, None, group_of_one)
    assert (ranks.rank, ranks.world_size, ranks.together) == (0, 1, False)


def test_numbers_that_differ_from_a_given_group_are_refused_and_otherwise_count(group_of_one):
    with pytest.raises(
        InvalidArgument, match="expected rank 0 and world size 1, .* got rank 1 and world size 2"
    ):
        find_ranks(1, 2, group_of_one)
    # The default group may be there for another purpose.
    ranks = find_ranks(1, 2, None)
    assert (ranks.rank, ranks.world_size, ranks.together) == (1, 2, False)


def test_a_group_needs_torch_distributed(group_of_one):
    dist.destroy_process_group()
    try:
        with pytest.raises(InvalidArgument, match=r"expected torch\.distributed to be initialised"):
            find_ranks(None, None, group_of_one)
    finally:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def test_a_process_that_is_alone_makes_a_token_of_its_own():
    ranks = find_ranks(None, None, None)
    assert share_token(None, ranks, 0) != share_token(None, ranks, 0)
    assert share_token("mine", ranks, 0) == "mine"


def test_ranks_without_a_process_group_need_a_token_or_a_launcher(monkeypatch, make_run):
    run = make_run()
    with pytest.raises(InvalidArgument, match="attempt: expected a token, because 2 ranks"):
        BatchSampler(run, rank=0, world_size=2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    tokens = {share_token(None, find_ranks(rank, 2, None), 0) for rank in range(2)}
    assert len(tokens) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"steps": 0},
        {"micro_batches": 0},
        {"prefetch": 0},
        {"timeout": 0.0},
        {"start_step": -1},
        {"replica": -1},
    ],
    ids=lambda one: next(iter(one)),
)
def test_an_argument_that_is_wrong_is_named_before_anything_is_asked_for(make_run, arguments):
    (name,) = arguments
    with pytest.raises(InvalidArgument, match=f"{name}: expected"):
        BatchSampler(make_run(), **arguments)


def test_processes_that_share_a_slice_are_served_the_same_and_report_it_once(make_run):
    run = make_run()
    samplers = [BatchSampler(run, attempt="a", replica=replica, steps=5) for replica in range(2)]
    for ids, same in zip(*samplers, strict=True):
        assert ids == same
        for sampler in samplers:
            sampler.update(torch.ones(4), ids=ids)
    assert [sampler.state_dict()["step"] for sampler in samplers] == [5, 5]
    for sampler in samplers:
        sampler.close()
    stats = run.stats()
    assert (stats.reported_losses, stats.duplicate_reports) == (20, 0)
