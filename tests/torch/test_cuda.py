"""Losses on a GPU: nothing that the trainer's thread does waits for the device."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from steelyard.torch import BatchSampler
from steelyard.torch.copies import HostCopy
from steelyard.weigh import weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

RULE = {"method": "linupper", "r": 0.4}


@pytest.fixture
def no_synchronisation():
    """Any call of torch's that waits for the device raises."""
    torch.ones(1, device="cuda").cpu()  # the context
    HostCopy(torch.ones(1, device="cuda")).numpy()  # the side stream and the first pinned block
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("weigh", [{"method": "uniform"}, RULE], ids=lambda rule: rule["method"])
def test_update_waits_for_no_device_and_every_loss_arrives(examples, make_run, no_synchronisation, weigh):
    run = make_run(weigh=weigh, history_size=20)
    table = torch.rand(24, generator=torch.Generator().manual_seed(0)) + 0.1
    theta = torch.ones((), device="cuda", requires_grad=True)
    on_device = table.pin_memory().to("cuda", non_blocking=True)
    with BatchSampler(run, steps=12) as sampler:
        for ids in DataLoader(examples, batch_sampler=sampler):
            losses = on_device[ids.pin_memory().to("cuda", non_blocking=True)] * theta
            loss = sampler.update(losses, ids=ids)
            loss.backward()
            losses.detach().zero_()  # reaches no copy
        assert sampler.state_dict()["step"] == 12
    torch.cuda.set_sync_debug_mode("default")
    batches = [run.batch(step).ids for step in range(12)]
    expected = sum(float((weights(table.numpy()[ids], weigh) * table.numpy()[ids]).mean()) for ids in batches)
    assert theta.grad is not None
    assert theta.grad.item() == pytest.approx(expected, rel=1e-5)
    known = dict(zip(range(24), run.history(range(24)), strict=True))
    for one in itertools.chain(*batches):
        assert known[int(one)][-1][1] == pytest.approx(float(table[one]))


def test_a_draw_that_reads_reports_waits_for_those_that_are_on_their_way(examples, make_run, scored):
    run = make_run(draw=scored, staleness=0)
    with BatchSampler(run, steps=20) as sampler:
        for ids in DataLoader(examples, batch_sampler=sampler):
            torch.cuda._sleep(2_000_000)  # the losses are late
            sampler.update(ids.to("cuda").float() + 1.0)
    assert run.stats().reported_losses == 80


def test_the_server_weighs_losses_of_a_device_too(make_run):
    run = make_run(weigh={**RULE, "where": "server"})
    losses = torch.tensor([0.5, 1.0, 2.0, 4.0], device="cuda")
    with BatchSampler(run) as sampler:
        next(iter(sampler))
        got = sampler.report(losses)
    assert got.device.type == "cuda"
    np.testing.assert_allclose(got.cpu(), weights(losses.cpu().numpy(), RULE), atol=1e-6)


def test_a_copy_arrives_from_the_stream_that_was_current():
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(10_000_000)
        values = torch.arange(1000, device="cuda", dtype=torch.float64)
        copy = HostCopy(values)
        values.zero_()
    assert copy.waits
    np.testing.assert_array_equal(copy.numpy(), np.arange(1000, dtype=np.float32))
