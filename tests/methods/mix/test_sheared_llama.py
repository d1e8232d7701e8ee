"""Sheared LLaMA's dynamic batch loading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.mix import GroupReport
from steelyard_server.policies.mix.sheared_llama import ShearedLlama

SIZES = np.array([670, 45, 285])
TARGETS = (2.0, 1.0, 2.0)
LOSSES = [2.2, 1.5, 2.0]
Reports = Callable[..., GroupReport]


def once(report_of: Reports, losses: Any = LOSSES, **fields: Any) -> Any:
    rule = ShearedLlama.parse({"targets": TARGETS, "every": 1, **fields})
    state = rule.update(rule.start(SIZES), report_of(SIZES, loss=losses))
    return rule.masses(state, SIZES, 1)


@pytest.mark.parametrize("update_type", ["doremi", "constant"])
def test_one_update_is_that_of_the_authors_code(
    golden: Callable[[str], Any], report_of: Reports, update_type: str
) -> None:
    want = golden(f"sheared_llama/{update_type} prop .67,.045,.285 loss 2.2,1.5,2.0 target 2,1,2")
    np.testing.assert_allclose(once(report_of, update_type=update_type), want, atol=5e-7)


def test_the_bandit_form_puts_the_shares_themselves_into_the_softmax(report_of: Reports) -> None:
    plain = np.exp(SIZES / 1000 + 0.7 * (np.array(LOSSES) - TARGETS))
    want = 0.99 * plain / plain.sum() + 0.01 / 3
    np.testing.assert_allclose(once(report_of, update_type="bandit", eta=0.7, c=0.01), want, rtol=1e-12)


def test_differences_below_zero_count_unless_they_are_clipped(report_of: Reports) -> None:
    losses = [1.0, 1.0, 2.0]
    plain = SIZES * np.exp([-1.0, 0.0, 0.0])
    np.testing.assert_allclose(once(report_of, losses, c=0), plain / plain.sum(), rtol=1e-12)
    np.testing.assert_allclose(once(report_of, losses, c=0, clip=True), SIZES / 1000, rtol=1e-12)


def test_nothing_moves_before_the_round_ends_and_then_the_mean_of_the_round_counts(
    report_of: Reports,
) -> None:
    rule = ShearedLlama(targets=TARGETS, every=3, c=0.0)
    state = rule.start(SIZES)
    for step, losses in enumerate([[2.0, 1.0, 2.0], [4.0, np.nan, 2.0], [3.0, 3.0, 2.0], [9.0, 9.0, 9.0]]):
        before = rule.masses(state, SIZES, step)
        state = rule.update(state, report_of(SIZES, step, loss=losses))
        assert (rule.masses(state, SIZES, step + 1).tolist() == before.tolist()) is (step != 2)
    plain = SIZES * np.exp([1.0, 1.0, 0.0])
    np.testing.assert_allclose(rule.masses(state, SIZES, 4), plain / plain.sum(), rtol=1e-12)


def test_a_rule_that_takes_over_a_running_run_waits_for_a_whole_round(report_of: Reports) -> None:
    rule = ShearedLlama(targets=TARGETS, every=3)
    state, moved = rule.start(SIZES), []
    for step in range(700, 706):
        before = rule.masses(state, SIZES, step).tolist()
        state = rule.update(state, report_of(SIZES, step, loss=LOSSES))
        moved.append(rule.masses(state, SIZES, step + 1).tolist() != before)
    assert moved == [False, False, True] * 2


def learning(effort: Any, step: int) -> Any:
    """The second domain takes many more rows than the others to come to the same loss."""
    return np.exp(-effort / np.array([300.0, 4000.0, 300.0]))


@pytest.mark.parametrize(("update_type", "reaches"), [("doremi", True), ("constant", False)])
def test_all_domains_reach_their_targets_where_a_constant_mix_leaves_one_behind(
    train: Callable[..., Any], update_type: str, reaches: bool
) -> None:
    rule = ShearedLlama.parse({"targets": [0.3] * 3, "every": 5, "update_type": update_type})
    losses = train(rule, [100, 100, 100], learning, 110, noise=0.02).values[-1]
    assert bool(losses.max() < 0.3) == reaches, losses
    assert bool(losses[1] > 0.5) != reaches, losses


def test_an_unknown_domain_moves_with_the_others_and_an_absent_one_by_its_last_loss(
    report_of: Reports,
) -> None:
    rule = ShearedLlama(targets=TARGETS, every=1, c=0.0)
    state = rule.update(rule.start(SIZES), report_of(SIZES, loss=[3.0, np.nan, 5.0]))
    plain = SIZES * np.exp([1.0, 2.0, 3.0])
    np.testing.assert_allclose(rule.masses(state, SIZES, 1), plain / plain.sum(), rtol=1e-12)
    state = rule.update(state, report_of(SIZES, 1, loss=[np.nan, 1.0, 2.0]))
    plain = plain * np.exp([1.0, 0.0, 0.0])
    np.testing.assert_allclose(rule.masses(state, SIZES, 2), plain / plain.sum(), rtol=1e-12)


def test_an_outlier_leaves_every_domain_its_share_of_c(report_of: Reports) -> None:
    np.testing.assert_allclose(once(report_of, [1e30, 1.0, 1.0]), [1 - 2e-4 / 3, 1e-4 / 3, 1e-4 / 3])


def test_a_domain_that_comes_later_has_target_zero_and_joins(report_of: Reports) -> None:
    rule, more = ShearedLlama(targets=TARGETS, every=1), np.array([*SIZES, 1000])
    state = rule.grown(rule.start(SIZES), more)
    state = rule.update(state, report_of(more, loss=[2.0, 1.0, 2.0, 0.5]))
    assert rule.masses(state, more, 1)[3] > 0.2


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ValidationError, match="targets"):
        ShearedLlama.parse({})
    with pytest.raises(ValidationError):
        ShearedLlama(targets=TARGETS, every=0)
    with pytest.raises(
        ValueError, match="mix.targets: expected one number for each of the 2 groups .* got 3"
    ):
        ShearedLlama(targets=TARGETS).start(SIZES[:2])


@pytest.mark.parametrize(
    "config",
    [
        {"method": "sheared_llama", "targets": [2, 1, 0], "every": 1},
        {
            "method": "sheared_llama",
            "targets": [2, 1, 0],
            "every": 2,
            "update_type": "bandit",
            "clip": True,
            "initial": [0, 1, 1],
        },
    ],
    ids=str,
)
def test_the_contract_holds_in_other_configurations(
    config: dict[str, Any], method_contract: Callable[..., None]
) -> None:
    method_contract(config)
