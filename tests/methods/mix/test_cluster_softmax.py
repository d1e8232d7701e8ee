"""Diversify and conquer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.mix import GroupReport
from steelyard_server.policies.mix.cluster_softmax import ClusterSoftmax

SIZES = np.array([100, 100, 100])
Reports = Callable[..., GroupReport]


def after(rule: ClusterSoftmax, report_of: Reports, *rounds: Any) -> Any:
    state = rule.start(SIZES)
    for step, gaps in enumerate(rounds):
        state = rule.update(state, report_of(SIZES, step, gap=gaps))
    return rule.masses(state, SIZES, len(rounds))


def test_the_second_round_is_that_of_the_authors_code(
    golden: Callable[[str], Any], report_of: Reports
) -> None:
    want = golden("kmeans_iter/cluster mean reward diff -.5,0,1")
    np.testing.assert_allclose(after(ClusterSoftmax(every=1), report_of, [-0.5, 0.0, 1.0]), want, atol=5e-7)


def test_perplexities_count_as_they_are(report_of: Reports) -> None:
    rule = ClusterSoftmax(every=1, form="perplexity")
    np.testing.assert_allclose(after(rule, report_of, [10.0, 30.0, 60.0]), [0.1, 0.3, 0.6])
    np.testing.assert_allclose(after(rule, report_of, [-10.0, 10.0, 30.0]), [0, 0.25, 0.75])


def test_the_first_round_is_alike_and_each_later_one_follows_the_means_of_the_one_before(
    report_of: Reports,
) -> None:
    rule, state = ClusterSoftmax(every=2, rounds=3), ClusterSoftmax(every=2).start(SIZES)
    gaps = [[0.0, 1, 2], [2.0, 1, 0], [3.0, 0, 0], [1.0, 0, 0], [0.0, 9, 9], [0.0, 9, 9]]
    laws = []
    for step, gap in enumerate(gaps):
        laws.append(rule.masses(state, SIZES, step))
        state = rule.update(state, report_of(SIZES, step, gap=gap))
    laws.append(rule.masses(state, SIZES, 6))
    np.testing.assert_allclose(laws[:4], np.full((4, 3), 1 / 3))
    want = np.exp([2.0, 0, 0]) / np.exp([2.0, 0, 0]).sum()
    np.testing.assert_allclose(laws[4:], [want, want, want])


def closing(effort: Any, step: int) -> Any:
    """The second cluster has much to learn at first, and learns it; the third keeps a small gap."""
    return np.array([0.0, 3.0 * np.exp(-effort[1] / 500), 1.0])


def test_the_cluster_with_a_gap_gains_until_it_is_closed_and_in_one_round_it_would_not(
    train: Callable[..., Any],
) -> None:
    rule = ClusterSoftmax(every=10, rounds=None)
    shares = train(rule, SIZES, closing, 60, noise=0.1).shares
    assert shares[10].argmax() == 1
    assert shares[10][1] > 0.6
    assert shares[-1].argmax() == 2, "a gap that is closed draws no more"
    alike = train(ClusterSoftmax(every=10, rounds=1), SIZES, closing, 60).shares
    np.testing.assert_allclose(alike, 1 / 3)


def test_a_cluster_without_reports_has_the_mean_of_the_others(report_of: Reports) -> None:
    got = after(ClusterSoftmax(every=1), report_of, [1.0, float("nan"), 3.0])
    np.testing.assert_allclose(got, np.exp([1.0, 2.0, 3.0]) / np.exp([1.0, 2.0, 3.0]).sum())
    nothing = [float("nan")] * 3
    np.testing.assert_allclose(after(ClusterSoftmax(every=1), report_of, nothing), 1 / 3)


@pytest.mark.parametrize("form", ["reward", "perplexity"])
def test_an_outlier_is_survived(report_of: Reports, form: str) -> None:
    got = after(ClusterSoftmax.parse({"every": 1, "form": form}), report_of, [1e30, 1.0, -1e30])
    np.testing.assert_allclose(got, [1, 0, 0], atol=1e-12)


@pytest.mark.parametrize("fields", [{"rounds": 0}, {"every": 0}, {"form": "loss"}])
def test_bad_parameters_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ClusterSoftmax.parse(fields)


@pytest.mark.parametrize(
    "config",
    [
        {"method": "cluster_softmax", "every": 1, "rounds": None},
        {"method": "cluster_softmax", "every": 2, "form": "perplexity"},
    ],
    ids=str,
)
def test_the_contract_holds_in_other_configurations(
    config: dict[str, Any], method_contract: Callable[..., None]
) -> None:
    method_contract(config)
