"""Group DRO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.mix import GroupReport
from steelyard_server.policies.mix.group_dro import GroupDro
from steelyard_server.policies.mix.static import Static

SIZES = np.array([900, 80, 20])


def test_q_follows_the_exponentiated_gradient_with_the_correction_for_size(
    report_of: Callable[..., GroupReport],
) -> None:
    rule = GroupDro(eta=0.3, adjustment=2.0, uniform=0.0)
    state, q = rule.start(SIZES), np.full(3, 1 / 3)
    for losses in ([1.0, 2.0, 0.5], [0.9, 2.5, 0.1]):
        state = rule.update(state, report_of(SIZES, loss=losses))
        q = q * np.exp(0.3 * (np.array(losses) + 2.0 / np.sqrt(SIZES)))
        q /= q.sum()
    np.testing.assert_allclose(rule.masses(state, SIZES, 2), q, rtol=1e-12)


def test_the_uniform_share_is_mixed_in() -> None:
    state = {"log_q": [0.0, -1000.0], "last": [0.0, 0.0], "known": [1.0, 1.0]}
    np.testing.assert_allclose(GroupDro(uniform=0.1).masses(state, SIZES[:2], 0), [0.95, 0.05])


def test_the_greedy_form_gives_the_worst_groups_their_part_of_alpha(
    report_of: Callable[..., GroupReport],
) -> None:
    rule = GroupDro(form="greedy", uniform=0.0)
    state = rule.update(rule.start(SIZES), report_of(SIZES, loss=[1.0, 2.0, 3.0]))
    # frac .9, .08, .02 and alpha .2: the two worst fill .1 of it, the rest of it goes to the third.
    np.testing.assert_allclose(rule.masses(state, SIZES, 1), [0.5, 0.4, 0.1])
    state = rule.update(state, report_of(SIZES, loss=[1.0, 2.0, -20.0]))
    # EMA: .9 · 3 - .1 · 20 = .7, now the best: the others fill alpha.
    assert state["last"][2] == pytest.approx(0.7)
    np.testing.assert_allclose(rule.masses(state, SIZES, 2), [0.6, 0.4, 0.0])


def learning(effort: Any, step: int) -> Any:
    """The minority learns as fast by the row as the others, and has farther to go."""
    return np.array([1.0, 1.5, 3.0]) * np.exp(-effort / 2000)


def test_the_worst_groups_loss_comes_down_to_the_others_where_a_proportional_draw_leaves_it(
    train: Callable[..., Any],
) -> None:
    robust = train(GroupDro(eta=0.05), SIZES, learning, 150, noise=0.1).values[-1]
    static = train(Static(), SIZES, learning, 150).values[-1]
    assert robust.max() < 0.6, robust
    assert np.ptp(robust) < 0.5, robust
    assert static.max() > 2.5, static
    assert np.ptp(static) > 2, static


def test_the_greedy_form_draws_the_worst_groups_one_over_alpha_times_as_often(
    train: Callable[..., Any],
) -> None:
    greedy = train(GroupDro(form="greedy", uniform=0.0), SIZES, learning, 150, noise=0.1)
    np.testing.assert_allclose(greedy.shares[1:, 2], 5 * 0.02, rtol=1e-9)
    static = train(Static(), SIZES, learning, 150)
    assert greedy.values[-1].max() < 0.75 * static.values[-1].max()


def test_with_the_sign_of_eta_turned_the_worst_group_would_be_left(train: Callable[..., Any]) -> None:
    class Reversed(GroupDro):
        def update(self, state: Any, report: GroupReport) -> Any:
            values = {"loss": -report.values["loss"]}
            return super().update(state, GroupReport(report.step, report.groups, values, report.sizes))

    assert train(Reversed(eta=0.05), SIZES, learning, 150).values[-1].max() > 1.5


def test_a_group_that_is_absent_counts_with_its_last_loss(report_of: Callable[..., GroupReport]) -> None:
    rule = GroupDro(eta=1.0, uniform=0.0)
    state = rule.update(rule.start(SIZES), report_of(SIZES, loss=[1.0, 1.0, 1.0]))
    state = rule.update(state, report_of(SIZES, loss=[1.0, np.nan, 1.0]))
    np.testing.assert_allclose(rule.masses(state, SIZES, 2), np.full(3, 1 / 3))


def test_a_group_without_any_report_counts_as_the_mean(report_of: Callable[..., GroupReport]) -> None:
    rule = GroupDro(eta=1.0, uniform=0.0)
    state = rule.update(rule.start(SIZES), report_of(SIZES, loss=[1.0, np.nan, 3.0]))
    q = np.exp([1.0, 2.0, 3.0])
    np.testing.assert_allclose(rule.masses(state, SIZES, 1), q / q.sum())
    assert rule.update(state, report_of(SIZES, loss=[np.nan] * 3)) == state


def test_an_outlier_is_survived_and_forgotten(report_of: Callable[..., GroupReport]) -> None:
    rule = GroupDro(eta=1.0, uniform=0.0)
    state = rule.update(rule.start(SIZES), report_of(SIZES, loss=[1e30, 1.0, 1.0]))
    assert np.isfinite(rule.masses(state, SIZES, 1)).all()
    for _ in range(800):
        state = rule.update(state, report_of(SIZES, loss=[0.0, 1.0, 1.0]))
    assert rule.masses(state, SIZES, 2)[0] < 1e-6, "q did not come back from where it was 1"


def test_a_new_group_starts_with_the_weight_of_the_greatest() -> None:
    rule = GroupDro(uniform=0.0)
    state = rule.grown({"log_q": [0.0, -2.0], "last": [1.0, 2.0], "known": [1.0, 1.0]}, SIZES)
    assert rule.masses(state, SIZES, 0)[2] == rule.masses(state, SIZES, 0)[0]


@pytest.mark.parametrize("fields", [{"eta": -1}, {"alpha": 0}, {"gamma": 0}, {"uniform": 2}, {"form": "x"}])
def test_bad_parameters_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GroupDro.parse(fields)


@pytest.mark.parametrize(
    "config",
    [
        {"method": "group_dro", "form": "greedy", "adjustment": 1.0},
        {"method": "group_dro", "eta": 1.0, "uniform": 0},
    ],
    ids=str,
)
def test_the_contract_holds_in_other_configurations(
    config: dict[str, Any], method_contract: Callable[..., None]
) -> None:
    method_contract(config)
