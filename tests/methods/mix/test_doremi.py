"""DoReMi."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.mix import GroupReport
from steelyard_server.policies.mix.doremi import Doremi

SIZES = np.array([100, 100, 100])
Reports = Callable[..., GroupReport]


@pytest.mark.parametrize(
    ("eps", "name"),
    [
        (1e-4, "doremi/excess (clipped) .5,0,1 from uniform eta=1 eps=1e-4 (code default)"),
        (1e-3, "doremi/eps=1e-3 (run script)"),
    ],
)
def test_one_update_is_that_of_the_authors_code(
    golden: Callable[[str], Any], report_of: Reports, eps: float, name: str
) -> None:
    rule = Doremi(eps=eps)
    state = rule.update(rule.start(SIZES), report_of(SIZES, excess=[0.5, 0.0, 1.0]))
    np.testing.assert_allclose(rule.masses(state, SIZES, 1), golden(name), atol=5e-7)


def test_the_current_mix_and_the_average_follow_their_formulas(report_of: Reports) -> None:
    rule = Doremi(eta=0.5, eps=0.01, initial=(0.5, 0.3, 0.2))
    state, alpha, seen = rule.start(SIZES), np.array([0.5, 0.3, 0.2]), []
    for excess in ([0.1, 0.9, 0.0], [0.3, 0.0, 2.0], [0.0, 0.2, 1.0]):
        state = rule.update(state, report_of(SIZES, excess=excess))
        moved = alpha * np.exp(0.5 * np.array(excess))
        alpha = 0.99 * moved / moved.sum() + 0.01 / 3
        seen.append(alpha)
    np.testing.assert_allclose(rule.masses(state, SIZES, 3), alpha, rtol=1e-12)
    average = rule.model_copy(update={"draw_by": "average"})
    np.testing.assert_allclose(average.masses(state, SIZES, 3), np.mean(seen, axis=0), rtol=1e-12)


def test_with_a_reference_the_excess_of_each_row_is_clipped_before_the_mean() -> None:
    rule = Doremi(reference="reference", eps=0.0)
    assert (rule.signals, rule.columns) == (("loss",), ("reference",))
    values = {"loss": np.array([1.0, 3.0, 2.0, 9.0]), "reference": np.array([2.0, 1.0, 1.0, np.nan])}
    state = rule.update(rule.start(SIZES[:2]), GroupReport(0, np.array([0, 0, 1, 1]), values, SIZES[:2]))
    # Group 0: mean of 0 and 2; were the mean clipped, it would be .5. Group 1: 1; the row without reference is skipped.
    np.testing.assert_allclose(rule.masses(state, SIZES[:2], 1), [0.5, 0.5], rtol=1e-12)


def excess_losses(effort: Any, step: int) -> Any:
    """0 can be learned and is not yet, 1 is high and cannot be lowered, 2 is learned already."""
    return np.array([2.0 + 1.5 * np.exp(-effort[0] / 4000), 5.0, 1.0])


def test_the_domain_with_the_most_to_learn_gains_and_the_one_with_irreducible_loss_does_not(
    train: Callable[..., Any],
) -> None:
    rule = Doremi(reference="reference", eta=0.1, draw_by="average")
    training = train(rule, SIZES, excess_losses, 100, noise=0.05, columns={"reference": [2.0, 5.0, 1.0]})
    end = training.shares[-1]
    assert end[0] > 0.7, end
    assert end[1] < 0.2, end


def test_by_the_loss_itself_the_irreducible_domain_would_take_all(train: Callable[..., Any]) -> None:
    training = train(Doremi(eta=0.1, draw_by="average"), SIZES, excess_losses, 100, noise=0.05)
    assert training.shares[-1][1] > 0.7, training.shares[-1]


def test_an_absent_domain_keeps_its_last_excess_and_an_unknown_one_has_the_mean(report_of: Reports) -> None:
    rule = Doremi(eps=0.0)
    state = rule.update(rule.start(SIZES), report_of(SIZES, excess=[1.0, np.nan, 3.0]))
    want = np.exp([1.0, 2.0, 3.0])
    np.testing.assert_allclose(rule.masses(state, SIZES, 1), want / want.sum())
    state = rule.update(state, report_of(SIZES, excess=[1.0, 0.0, np.nan]))
    want = want * np.exp([1.0, 0.0, 3.0])
    np.testing.assert_allclose(rule.masses(state, SIZES, 2), want / want.sum())
    assert rule.update(state, report_of(SIZES, excess=[np.nan] * 3)) == state


def test_an_outlier_leaves_every_domain_its_share_of_eps(report_of: Reports) -> None:
    rule = Doremi()
    state = rule.update(rule.start(SIZES), report_of(SIZES, excess=[1e30, 0.0, 1.0]))
    np.testing.assert_allclose(rule.masses(state, SIZES, 1), [1 - 2e-4 / 3, 1e-4 / 3, 1e-4 / 3])


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ValidationError):
        Doremi(eps=2)
    with pytest.raises(ValueError, match="mix.initial: expected one number for each of the 3 groups"):
        Doremi(initial=(1, 2)).start(SIZES)


@pytest.mark.parametrize(
    "config",
    [
        {"method": "doremi", "reference": "reference", "draw_by": "average"},
        {"method": "doremi", "eps": 0, "initial": [1, 0, 2]},
    ],
    ids=str,
)
def test_the_contract_holds_in_other_configurations(
    config: dict[str, Any], method_contract: Callable[..., None]
) -> None:
    method_contract(config)
