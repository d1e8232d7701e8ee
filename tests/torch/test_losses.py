"""Losses in, a scalar or weights out, and what does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from steelyard import FailedPrecondition, InvalidArgument, MismatchedLosses, ReportRefused
from steelyard.torch import BatchSampler
from steelyard.torch.objective import objective
from steelyard.weigh import weights

GOLDENS = json.loads((Path(__file__).parents[1] / "golden" / "goldens.json").read_text(encoding="utf-8"))
LOSSES = [0.5, 1.0, 2.0, 4.0]
RULES = [
    {"method": "uniform"},
    {"method": "linupper", "r": 0.4},
    {"method": "quadratic", "r": 0.4},
    {"method": "extremes", "r": 0.4},
    {"method": "upper", "r": 0.4},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["method"])
@pytest.mark.parametrize("where", ["auto", "client", "server"])
def test_update_is_the_weighted_mean_and_passes_its_gradient(make_run, rule, where):
    run = make_run(weigh={**rule, "where": where})
    expected = weights(np.array(LOSSES), rule)
    with BatchSampler(run) as sampler:
        ids = next(iter(sampler))
        losses = torch.tensor(LOSSES, requires_grad=True)
        loss = sampler.update(losses, ids=ids)
        loss.backward()
    assert loss.shape == ()
    assert loss.item() == pytest.approx((expected * LOSSES).mean(), abs=1e-6)
    assert losses.grad is not None
    np.testing.assert_allclose(losses.grad, expected / 4, atol=1e-6)
    assert [one[-1] for one in run.history(ids)] == [(0, loss) for loss in LOSSES]


def test_linupper_gives_the_authors_weights_through_the_sampler(make_run):
    run = make_run(weigh={"method": "linupper", "r": 0.4})
    with BatchSampler(run) as sampler:
        next(iter(sampler))
        got = sampler.report(torch.tensor(LOSSES))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, GOLDENS["seed/linupper/r=0.4"]["w_sumB"], atol=1e-6)


@pytest.mark.parametrize("where", ["client", "server"])
def test_two_ranks_without_a_process_group_are_weighed_by_the_server_alone(make_run, where):
    run = make_run(weigh={"method": "linupper", "r": 0.4, "where": where})
    sampler = BatchSampler(run, rank=0, world_size=2, attempt="a")
    if where == "client":
        with pytest.raises(
            InvalidArgument, match="needs the losses of all 2 ranks: initialise torch.distributed"
        ):
            next(iter(sampler))
        return
    with sampler:
        assert len(next(iter(sampler))) == 2


def test_a_draw_that_is_not_uniform_is_undone_by_the_weights_that_came_with_the_batch(client, make_run):
    scored = {"method": "scored", "score": "quality", "sampling": "independent"}
    client.create_dataset("graded", size=8)
    client.set_column("graded", "quality", np.arange(1.0, 9.0))
    run = client.create_run(
        "graded", dataset="graded", batch_size=4, draw=scored, weigh={"method": "importance"}
    )
    with BatchSampler(run) as sampler:
        ids = next(iter(sampler))
        got = sampler.report(torch.tensor(LOSSES, dtype=torch.float64))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, 36 / (8 * (np.array(ids) + 1)), rtol=1e-3)


def test_a_loss_that_is_not_finite_is_reported_and_left_out(make_run):
    run = make_run(weigh={"method": "linupper", "r": 0.4})
    values = torch.tensor([float("nan"), 1.0, float("inf"), 4.0], requires_grad=True)
    with BatchSampler(run) as sampler:
        next(iter(sampler))
        loss = sampler.update(values)
        loss.backward()
        sampler.state_dict()
    expected = weights(values.detach().numpy(), {"method": "linupper", "r": 0.4})
    assert loss.item() == pytest.approx((expected[1] * 1.0 + expected[3] * 4.0) / 4, abs=1e-6)
    assert values.grad is not None
    np.testing.assert_allclose(values.grad, expected / 4, atol=1e-6)
    assert values.grad[[0, 2]].tolist() == [0.0, 0.0]
    assert run.stats().nonfinite_losses == 2


def test_uniform_gives_a_loss_that_is_not_finite_no_weight_either(make_run):
    with BatchSampler(make_run()) as sampler:
        next(iter(sampler))
        assert sampler.report(torch.tensor([1.0, float("nan"), 2.0, 3.0])).tolist() == [1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_losses_of_every_precision_are_taken(make_run, dtype):
    run = make_run(weigh={"method": "upper"})
    with BatchSampler(run) as sampler:
        ids = next(iter(sampler))
        losses = torch.tensor(LOSSES, dtype=dtype, requires_grad=True)
        loss = sampler.update(losses)
        loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert losses.grad is not None
    assert losses.grad.dtype == dtype
    assert [one[-1][1] for one in run.history(ids)] == LOSSES


def test_what_is_done_to_the_losses_later_is_not_reported(make_run):
    run = make_run()
    with BatchSampler(run) as sampler:
        ids = next(iter(sampler))
        losses = torch.tensor(LOSSES)
        sampler.update(losses)
        losses.zero_()
    assert [one[-1][1] for one in run.history(ids)] == LOSSES


def test_signals_travel_with_the_losses(make_run):
    draw = {"method": "scored", "score": "last_correct", "floor": 0.5}
    run = make_run(draw=draw, staleness=0)
    with BatchSampler(run) as sampler:
        at = iter(sampler)
        ids = next(at)
        sampler.update(torch.tensor(LOSSES), signals={"correct": [1, 0, 1, 0]})
        next(at)  # its draw has folded the report
        assert run.column("last_correct", ids).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_micro_batches_are_weighed_one_by_one_and_add_up_to_the_mean(make_run):
    rule = {"method": "linupper", "r": 0.4}
    run = make_run(batch_size=7, weigh=rule)
    values = np.random.default_rng(1).exponential(size=7).astype(np.float32)
    total = 0.0
    with BatchSampler(run, micro_batches=3) as sampler:
        at = iter(sampler)
        for part in np.array_split(values, 3):
            assert len(next(at)) == len(part)
            total += sampler.update(torch.from_numpy(part)).item()
        assert sampler.step == 1
        sampler.state_dict()
    expected = sum((weights(part, rule) * part).sum() for part in np.array_split(values, 3)) / 7
    assert total == pytest.approx(expected, abs=1e-6)
    assert run.stats().closed_steps == 1


def test_the_server_cannot_weigh_micro_batches(make_run):
    run = make_run(weigh={"method": "linupper", "where": "server"})
    sampler = BatchSampler(run, micro_batches=2)
    with pytest.raises(
        InvalidArgument, match="micro_batches: expected 1, because the server weighs by 'linupper'"
    ):
        next(iter(sampler))


def test_what_only_the_server_can_weigh_is_not_said_to_be_the_trainer_s(make_run):
    run = make_run(weigh={"method": "selective_backprop", "warmup_steps": 0})
    sampler = BatchSampler(run, micro_batches=2)
    with pytest.raises(
        InvalidArgument, match=r"server weighs by 'selective_backprop'.*got 2\. Only the server can$"
    ):
        next(iter(sampler))


def test_a_signal_that_the_updates_bring_reaches_the_rule(make_run):
    """Beside the losses; and no warning comes."""
    run = make_run(draw={"method": "shuffle"}, weigh={"method": "importance_resample", "score": "grad_norm"})
    assert "grad_norm" in run.stats().missing_inputs[0]
    with BatchSampler(run, steps=20) as sampler:
        for _ in sampler:
            weights = sampler.report(torch.tensor(LOSSES), signals={"grad_norm": torch.tensor(LOSSES)})
            assert weights.sum() > 0
    assert run.stats().missing_inputs == ()


def test_a_rule_that_is_changed_while_training_holds_from_its_step_on(make_run):
    run = make_run()
    got: list[list[float]] = []
    with BatchSampler(run, prefetch=1, steps=12) as sampler:
        for _ in sampler:
            if sampler.step == 3:
                run.change_policy(weigh={"method": "linupper", "r": 0.4})
            got.append(sampler.report(torch.tensor(LOSSES)).tolist())
    assert got[:4] == [[1.0] * 4] * 4
    np.testing.assert_allclose(got[-1], GOLDENS["seed/linupper/r=0.4"]["w_sumB"], atol=1e-6)


@pytest.mark.parametrize(
    ("losses", "came"),
    [
        (torch.ones(3), r"shape \(3,\)"),
        (torch.ones(4, 1), r"shape \(4, 1\)"),
        (torch.tensor(1.0), r"shape \(\)"),
        ([1.0] * 4, "list"),
    ],
)
def test_losses_of_another_shape_are_refused_and_the_batch_is_still_due(make_run, losses, came):
    run = make_run()
    with BatchSampler(run) as sampler:
        next(iter(sampler))
        for call in (sampler.update, sampler.report):
            with pytest.raises(
                MismatchedLosses, match=f"step 0: expected a tensor of 4 losses, .* got {came}"
            ):
                call(losses)
        sampler.update(torch.ones(4))
        assert sampler.state_dict()["step"] == 1


def test_ids_of_another_batch_or_order_are_refused_by_name(make_run):
    with BatchSampler(make_run()) as sampler:
        at = iter(sampler)
        first, second = next(at), next(at)
        with pytest.raises(MismatchedLosses) as caught:
            sampler.update(torch.ones(4), ids=second)
        assert f"step 0: expected the ids {first}, got {second}; 4 differ" in str(caught.value)
        swapped = torch.tensor([first[0], first[2], first[1], first[3]])
        with pytest.raises(MismatchedLosses, match="2 differ, the first at position 1"):
            sampler.update(torch.ones(4), ids=swapped)
        with pytest.raises(MismatchedLosses, match="step 0: expected 4 ids, got 3"):
            sampler.update(torch.ones(4), ids=first[:3])
        sampler.update(torch.ones(4), ids=torch.tensor(first))
        sampler.update(torch.ones(4), ids=np.array(second))
        assert sampler.step == 2


def test_a_message_names_the_micro_batch(make_run):
    with BatchSampler(make_run(), micro_batches=2) as sampler:
        at = iter(sampler)
        next(at)
        sampler.update(torch.ones(2))
        next(at)
        with pytest.raises(MismatchedLosses, match="step 0, micro-batch 1: expected a tensor of 2 losses"):
            sampler.update(torch.ones(4))


def test_losses_that_no_batch_lacks_are_refused(make_run):
    with BatchSampler(make_run(), micro_batches=2) as sampler:
        with pytest.raises(FailedPrecondition, match="no batch lacks losses: none was served yet; expected"):
            sampler.update(torch.ones(2))
        next(iter(sampler))
        sampler.update(torch.ones(2))
        with pytest.raises(
            FailedPrecondition, match="no batch lacks losses: each one that was served was reported"
        ):
            sampler.update(torch.ones(2))  # the second half was not handed out yet
        sampler.load_state_dict(sampler.state_dict())
        with pytest.raises(FailedPrecondition, match="none was served yet since a state was loaded"):
            sampler.report(torch.ones(2))


def test_signals_that_do_not_fit_are_refused(make_run):
    with BatchSampler(make_run()) as sampler:
        next(iter(sampler))
        with pytest.raises(
            MismatchedLosses, match=r"signal 'correct': expected 4 numbers, .* got shape \(3,\)"
        ):
            sampler.update(torch.ones(4), signals={"correct": torch.ones(3)})
        with pytest.raises(InvalidArgument, match="expected another name"):
            sampler.update(torch.ones(4), signals={"loss": torch.ones(4)})
        sampler.update(torch.ones(4))


def test_a_refused_report_is_raised_once_and_training_goes_on(make_run):
    run = make_run(on_nonfinite="reject")
    with BatchSampler(run) as sampler:
        at = iter(sampler)
        next(at)
        sampler.update(torch.tensor([1.0, 2.0, float("nan"), 3.0]))
        with pytest.raises(ReportRefused, match="step 0"):
            sampler.state_dict()
        next(at)
        sampler.update(torch.ones(4))
        assert sampler.state_dict()["step"] == 2


def test_the_objective_is_the_mean_whatever_the_slices_are():
    losses, weight = torch.arange(1.0, 8.0), torch.linspace(0.5, 2.0, 7)
    cuts = [(0, 3), (3, 5), (5, 7)]
    parts = [objective(losses[a:b], weight[a:b], world_size=3, batch_size=7) for a, b in cuts]
    assert sum(part.item() for part in parts) / 3 == pytest.approx((losses * weight).mean().item(), rel=1e-6)
