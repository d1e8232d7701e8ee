"""Quad's bandit over clusters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.mix import GroupReport
from steelyard_server.policies.mix.cluster_ucb import ClusterUcb
from steelyard_server.policies.mix.group_balanced import GroupBalanced

Reports = Callable[..., GroupReport]
CLUSTERS = 20
SIZES = np.full(CLUSTERS, 100)
BEST = 13
LINE = tuple(tuple(abs(i - j) * 0.05 for j in range(CLUSTERS)) for i in range(CLUSTERS))


def test_the_scores_are_those_of_the_authors_code(golden: Callable[[str], Any]) -> None:
    rule = ClusterUcb(alpha=1e-4)
    state = {"rewards": [0.004, -0.002, 0.0], "pulls": [2.0, 1.0, 0.0]}
    want = golden("quad/scores .004,-.002,0 chosen 2,1,0 sum 3 alpha 1e-4")
    np.testing.assert_allclose(rule.scores(state), want, atol=5e-9)


def test_a_reward_spreads_to_the_clusters_within_the_threshold(report_of: Reports) -> None:
    distances = ((0.0, 0.1, 0.2, 0.5), (0.1, 0, 0.3, 0.3), (0.2, 0.3, 0, 0.1), (0.5, 0.3, 0.1, 0))
    rule, sizes = ClusterUcb(distances=distances, threshold=0.2), np.full(4, 9)
    nan = float("nan")
    state = rule.update(rule.start(sizes), report_of(sizes, influence=[1.002, nan, nan, 0.502]))
    state = rule.prepared(state, sizes, 1)
    # From 0: 1 at itself, half at 1, nothing at 2, which is as far as the threshold; from 3: .5 there, .25 at 2.
    np.testing.assert_allclose(state["rewards"], [1.0, 0.5, 0.25, 0.5])
    assert state["pulls"] == [1, 1, 2, 1]


def test_a_cluster_is_nearest_to_itself_whatever_stands_on_the_diagonal(report_of: Reports) -> None:
    rule, sizes = ClusterUcb(distances=((9.0, 9.0), (9.0, 9.0)), offset=0.0), np.array([9, 9])
    state = rule.update(rule.start(sizes), report_of(sizes, influence=[0.5, float("nan")]))
    state = rule.prepared(state, sizes, 1)
    assert (state["rewards"], state["pulls"]) == ([0.5, 0.0], [1.0, 0.0])


def test_the_clusters_with_the_greatest_scores_have_all_the_mass(report_of: Reports) -> None:
    rule, sizes = ClusterUcb(per_round=2, alpha=0.0), np.array([9, 9, 9, 0])
    state = rule.update(rule.start(sizes), report_of(sizes, influence=[0.1, 0.5, 0.3, 9.0]))
    np.testing.assert_array_equal(rule.masses(state, sizes, 1), [0, 1, 1, 0])


def hidden(effort: Any, step: int) -> Any:
    """One cluster has the most influence, its neighbours some."""
    return np.maximum(1.0 - 0.25 * np.abs(np.arange(CLUSTERS) - BEST), 0.0)


def test_the_best_cluster_is_found_with_fewer_pulls_than_by_drawing_all_alike(
    train: Callable[..., Any],
) -> None:
    rule = ClusterUcb(alpha=0.5, per_round=1, passes=None)
    pulls = train(rule, SIZES, hidden, 200, batch=8, noise=0.2).shares.sum(axis=0)
    alike = train(GroupBalanced(), SIZES, lambda effort, step: None, 200, batch=8).shares.sum(axis=0)
    assert alike[BEST] == pytest.approx(10)
    assert pulls.argmax() == BEST
    assert pulls[BEST] > 8 * alike[BEST], pulls


def test_with_neighbours_the_clusters_that_pay_are_reached_in_fewer_pulls(train: Callable[..., Any]) -> None:
    until = {}
    for distances in (None, LINE):
        rule = ClusterUcb(alpha=0.3, per_round=1, distances=distances, passes=None)
        pulled = train(rule, SIZES, hidden, 30, batch=8).shares.argmax(axis=1)
        until[distances] = int(np.flatnonzero(hidden(None, 0)[pulled] > 0)[0])
    assert until[LINE] < 5 < 10 <= until[None], until


def test_without_the_bonus_the_first_cluster_that_pays_would_stay(train: Callable[..., Any]) -> None:
    rule = ClusterUcb(alpha=0.0, per_round=1, passes=None)
    pulls = train(rule, SIZES, lambda effort, step: hidden(effort, step) + 1, 200, batch=8).shares.sum(axis=0)
    assert pulls[BEST] == 0
    assert pulls[0] == 200


def test_after_a_pull_that_pays_its_neighbours_come_next(train: Callable[..., Any]) -> None:
    def one_pays(effort: Any, step: int) -> Any:
        return np.where(np.arange(CLUSTERS) == BEST, 1.0, 0.0)

    for distances, near in ((LINE, True), (None, False)):
        rule = ClusterUcb(per_round=4, distances=distances, passes=1.0)
        shares = train(rule, SIZES, one_pays, 60, batch=32).shares
        first = int(np.flatnonzero(shares[:, BEST])[0])
        pulled = set(np.flatnonzero(shares[first + 1]))
        assert ({BEST - 1, BEST, BEST + 1} <= pulled) is near, pulled


def test_an_exhausted_cluster_is_left_until_all_are(report_of: Reports) -> None:
    rule, sizes = ClusterUcb(per_round=1, alpha=0.0), np.array([2, 5])
    state = rule.start(sizes)
    for step in range(2):
        assert rule.masses(state, sizes, step).tolist() == [1, 0]
        row = GroupReport(step, np.array([0]), {"influence": np.array([1.0])}, sizes)
        state = rule.update(state, row)
    assert rule.masses(state, sizes, 2).tolist() == [0, 1]
    rest = GroupReport(2, np.full(5, 1), {"influence": np.zeros(5)}, sizes)
    assert rule.masses(rule.update(state, rest), sizes, 3).tolist() == [1, 0]
    assert rule.model_copy(update={"passes": None}).masses(state, sizes, 2).tolist() == [1, 0]


def test_a_round_of_several_steps_counts_as_one_pull(report_of: Reports) -> None:
    rule, sizes = ClusterUcb(every=3, offset=0.0), np.array([9, 9])
    state = rule.start(sizes)
    for step, value in enumerate([1.0, 2.0, 6.0]):
        state = rule.update(state, report_of(sizes, step, influence=[value, float("nan")]))
    assert rule.prepared(state, sizes, 2) == state
    state = rule.prepared(state, sizes, 3)
    assert (state["rewards"], state["pulls"]) == ([3.0, 0.0], [1.0, 0.0])


def test_an_outlier_and_a_cluster_that_comes_later_are_survived(report_of: Reports) -> None:
    rule, sizes, more = ClusterUcb(distances=LINE), SIZES, np.full(CLUSTERS + 1, 100)
    state = rule.update(rule.start(sizes), report_of(sizes, influence=[1e30] * CLUSTERS))
    state = rule.grown(state, more)
    state = rule.update(state, report_of(more, 1, influence=[-1e30] * (CLUSTERS + 1)))
    masses = rule.masses(state, more, 2)
    assert np.isfinite(masses).all()
    assert masses.sum() == CLUSTERS + 1


def test_bad_parameters_are_refused() -> None:
    for fields in ({"per_round": 0}, {"threshold": 0}, {"passes": 0}, {"distances": [[-1.0]]}):
        with pytest.raises(ValidationError):
            ClusterUcb.parse(fields)
    with pytest.raises(ValueError, match="mix.distances: expected 3 rows of 3 numbers"):
        ClusterUcb(distances=((0.0, 1.0), (1.0, 0.0))).start(np.array([1, 1, 1]))


@pytest.mark.parametrize(
    "config",
    [
        {"method": "cluster_ucb", "alpha": 1.0, "per_round": 3, "passes": None},
        {
            "method": "cluster_ucb",
            "distances": [[0, 0.1, 1], [0.1, 0, 0.1], [1, 0.1, 0]],
            "every": 2,
        },
    ],
    ids=str,
)
def test_the_contract_holds_in_other_configurations(
    config: dict[str, Any], method_contract: Callable[..., None]
) -> None:
    method_contract(config)
