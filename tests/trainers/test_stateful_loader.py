"""torchdata's StatefulDataLoader over a BatchSampler: its state holds the sampler's place, and nothing is lost."""

import json
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

import steelyard
from steelyard import InvalidArgument, StalenessError
from steelyard.torch import BatchSampler

pytest.importorskip("torchdata")
from torchdata.stateful_dataloader import StatefulDataLoader  # type: ignore[import-untyped]

pytestmark = pytest.mark.xdist_group("stateful")

SCORED = {"method": "scored", "score": "last_loss", "floor": 0.1}
RUN: dict[str, Any] = {"batch_size": 5, "seed": 7, "draw": SCORED, "staleness": 6}
SIZE = 40


class Ids(Dataset[int]):
    def __getitem__(self, at):
        return at


def losses_of(ids):
    return (ids.float() * 0.37) % 1.0 + 0.1


def served(run, steps):
    return [run.batch(step).ids.tolist() for step in range(steps)]


@pytest.fixture(scope="module")
def client(server):
    client = server.client()
    client.create_dataset("d", SIZE)
    return client


@pytest.fixture(scope="module")
def undisturbed(client):
    """The batches of a run that one process trained without a loader."""
    run = client.create_run("undisturbed", dataset="d", **RUN)
    with run.join() as session:
        for _ in range(30):
            batch = session.next()
            session.report(batch, losses_of(torch.from_numpy(batch.ids)))
    return served(run, 30)


@pytest.fixture
def run(client, request):
    name = "".join(one if one.isalnum() else "-" for one in request.node.name)
    return client.create_run(name, dataset="d", **RUN)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fork", {"workers": 2, "context": "fork"}),
        ("spawn", {"workers": 2, "context": "spawn", "passes": 1}),
        ("none", {"workers": 0}),
        ("persistent", {"workers": 2, "context": "fork", "persistent": True, "micro_batches": 2}),
    ],
)
@pytest.mark.timeout(400)
def test_a_loader_killed_in_the_middle_of_a_pass_goes_on_where_its_state_says(
    start, run, undisturbed, tmp_path, name, options
):
    # Passes of 10 steps. Killed at a checkpoint, and past one in the second pass; the others once. Spawned workers are
    # slow to start.
    parts = options.get("micro_batches", 1)
    deaths = (8, 15) if name == "fork" else (9 * parts,)
    checkpoint = tmp_path / "checkpoint.pt"
    base = {"steps": 10, "passes": 2, "every": 4 * parts, **options}
    for die_at in deaths:
        job = {**base, "die_at": die_at}
        start("train_stateful.py", run.client.address, run.name, checkpoint, json.dumps(job)).expect(-9)
        kept = len(torch.load(checkpoint)["trained"])
        assert kept == die_at // base["every"] * base["every"]
    start("train_stateful.py", run.client.address, run.name, checkpoint, json.dumps(base)).expect(0)
    trained = torch.load(checkpoint)["trained"]
    steps: list[list[int]] = [sum(trained[at : at + parts], []) for at in range(0, len(trained), parts)]  # noqa: RUF017
    count = 10 * base["passes"]
    assert steps == undisturbed[:count]
    assert served(run, count) == undisturbed[:count]
    assert run.stats().reported_losses == count * 5, "each batch that counts was reported once"


def test_the_state_of_a_loader_is_that_of_what_it_handed_out_and_not_of_what_it_took_ahead(run):
    with BatchSampler(run) as sampler:
        loader = StatefulDataLoader(Ids(), batch_sampler=sampler, num_workers=2)
        for at, ids in enumerate(loader):
            sampler.update(losses_of(ids), ids=ids)
            state = loader.state_dict()
            place = state["_snapshot"]["_main_snapshot"]["_sampler_iter_state"]
            assert place == {"version": 1, "run": run.name, "step": at + 1}
            assert run.info().closed_steps == at + 1, "what a state counts is durable"
            if at == 5:
                break
        assert sampler.session is not None
        assert sampler.session.step > 6
        assert sampler.state_dict()["step"] == 6


def test_a_state_before_the_first_batch_and_one_after_the_last_are_good(run, undisturbed):
    trained = []
    states: list[Any] = []
    for _ in range(4):
        with BatchSampler(run, steps=3) as sampler:
            loader = StatefulDataLoader(Ids(), batch_sampler=sampler, num_workers=1)
            if states:
                loader.load_state_dict(states[-1])
            states.append(loader.state_dict())
            for ids in loader:
                sampler.update(losses_of(ids), ids=ids)
                trained.append(ids.tolist())
            states.append(loader.state_dict())
    assert trained == undisturbed[:12]
    assert len(states) == 8


def test_a_loader_that_keeps_a_state_only_now_and_then_is_told(run):
    with BatchSampler(run) as sampler:
        loader = StatefulDataLoader(Ids(), batch_sampler=sampler, num_workers=2, snapshot_every_n_steps=3)
        with pytest.raises(InvalidArgument, match="snapshot_every_n_steps: expected 1"):
            next(iter(loader))


def test_a_loader_without_workers_may_be_asked_for_its_state_at_any_time(run, undisturbed):
    trained = []
    with BatchSampler(run) as sampler:
        loader = StatefulDataLoader(Ids(), batch_sampler=sampler)
        for _ in range(2):
            loader.state_dict()
        for at, ids in enumerate(loader):
            if at == 1:
                assert sampler.state_dict()["step"] == 1
            sampler.update(losses_of(ids), ids=ids)
            trained.append(ids.tolist())
            if at % 3 == 2:
                assert loader.state_dict()["_sampler_iter_state"]["step"] == at + 1
            if at == 8:
                break
    assert trained == undisturbed[:9]


def test_a_stateful_loader_that_takes_more_ahead_than_the_staleness_is_told_at_once(client):
    run = client.create_run("narrow", dataset="d", **{**RUN, "staleness": 3})
    with BatchSampler(run) as sampler:
        loader = StatefulDataLoader(Ids(), batch_sampler=sampler, num_workers=2)
        with pytest.raises(StalenessError, match="staleness 3"):
            next(iter(loader))
    assert isinstance(run, steelyard.Run)
