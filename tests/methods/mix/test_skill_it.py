"""Skill-it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.mix import GroupReport
from steelyard_server.policies.mix.skill_it import SkillIt

SIZES = np.array([100, 100])
GRAPH = ((1.0, 0.5), (0.0, 1.0))
Reports = Callable[..., GroupReport]


def shares(rule: SkillIt, report_of: Reports, *rounds: list[float], sizes: Any = SIZES) -> Any:
    state = rule.start(sizes)
    for step, losses in enumerate(rounds):
        state = rule.update(state, report_of(sizes, step, loss=losses))
    masses = rule.masses(state, sizes, len(rounds))
    return masses / masses.sum()


def test_two_rounds_are_those_of_the_authors_code(golden: Callable[[str], Any], report_of: Reports) -> None:
    rule = SkillIt(eta=0.5, graph=GRAPH, window=3, every=1)
    want = golden("skill_it/eta=.5 A=[[1,.5],[0,1]] losses (2,1),(1.8,.9) window 3")
    np.testing.assert_allclose(shares(rule, report_of, [2, 1], [1.8, 0.9]), want, atol=5e-7)


def test_only_the_rounds_of_the_window_count_and_p0_is_a_factor(report_of: Reports) -> None:
    rule = SkillIt(eta=0.2, graph=GRAPH, window=2, every=1, initial=(3.0, 1.0))
    rounds = np.array([[9.0, 5.0], [2.0, 1.0], [1.8, 0.9]])
    plain = np.array([3.0, 1.0]) * np.exp(0.2 * (np.array(GRAPH) @ rounds[1:].sum(axis=0)))
    got = shares(rule, report_of, *rounds.tolist())
    np.testing.assert_allclose(got, plain / plain.sum(), rtol=1e-12)


def test_with_targets_only_their_losses_count_and_rounds_are_averaged(report_of: Reports) -> None:
    rule = SkillIt(eta=1.0, graph=GRAPH, every=1, targets=(0, 1))
    rounds = np.array([[9.0, 1.0], [7.0, 2.0]])
    plain = np.exp(np.array(GRAPH) @ [0.0, 1.5])
    np.testing.assert_allclose(shares(rule, report_of, *rounds.tolist()), plain / plain.sum(), rtol=1e-12)


def learning(effort: Any, step: int) -> Any:
    """Rows of the second skill teach no more than those of the first; of its own, the first has little loss."""
    useful = effort.min()
    return np.array([0.5 * np.exp(-effort[0] / 4000), 3.0 * np.exp(-useful / 1500)])


@pytest.mark.parametrize(("graph", "learns"), [(((1, 1), (0, 1)), True), (None, False)])
def test_a_prerequisite_gains_through_the_graph_and_not_by_its_own_loss(
    train: Callable[..., Any], graph: Any, learns: bool
) -> None:
    rule = SkillIt(eta=0.5, graph=graph, every=5)
    training = train(rule, SIZES, learning, 100, noise=0.05)
    assert bool(training.shares[20:60, 0].mean() > 0.3) == learns
    assert bool(training.values[60][1] < 1.5) == learns, training.values[60]


def test_before_the_first_round_ends_the_mix_is_p0(report_of: Reports) -> None:
    rule = SkillIt(graph=GRAPH, every=2, initial=(1.0, 3.0))
    np.testing.assert_allclose(shares(rule, report_of, [50, 1]), [0.25, 0.75], rtol=1e-12)


def test_a_skill_without_reports_counts_as_the_mean(report_of: Reports) -> None:
    sizes = np.array([10, 10, 10])
    got = shares(SkillIt(eta=1.0, every=1), report_of, [1.0, float("nan"), 3.0], sizes=sizes)
    np.testing.assert_allclose(got, np.exp([1.0, 2.0, 3.0]) / np.exp([1.0, 2.0, 3.0]).sum(), rtol=1e-12)


def test_a_skill_that_comes_later_stands_alone_in_the_graph(report_of: Reports) -> None:
    rule, more = SkillIt(eta=1.0, graph=GRAPH, every=1), np.array([100, 100, 100])
    state = rule.update(rule.start(SIZES), report_of(SIZES, loss=[1.0, 2.0]))
    state = rule.grown(rule.prepared(state, SIZES, 1), more)
    state = rule.update(state, report_of(more, 1, loss=[1.0, 2.0, 4.0]))
    want = np.exp([2 + 0.5 * 4, 4.0, 4.0])
    masses = rule.masses(state, more, 2)
    np.testing.assert_allclose(masses / masses.sum(), want / want.sum(), rtol=1e-12)


def test_an_outlier_is_survived(report_of: Reports) -> None:
    got = shares(SkillIt(every=1, graph=GRAPH), report_of, [1e30, 1.0])
    np.testing.assert_allclose(got, [1, 0], atol=1e-12)


def test_bad_parameters_are_refused() -> None:
    for fields in ({"window": 0}, {"eta": -1}, {"targets": [2, 0]}):
        with pytest.raises(ValidationError):
            SkillIt.parse(fields)
    for parameters in ({"graph": GRAPH}, {"graph": ((1, 0), (0, 1), (0, 0, 1))}):
        with pytest.raises(ValueError, match="mix.graph: expected 3 rows of 3 numbers"):
            SkillIt.parse(parameters).start(np.array([1, 1, 1]))
    with pytest.raises(ValueError, match="mix.targets: expected one number for each of the 3 groups"):
        SkillIt(targets=(1, 0)).start(np.array([1, 1, 1]))


@pytest.mark.parametrize(
    "config",
    [
        {"method": "skill_it", "every": 1, "window": 2},
        {
            "method": "skill_it",
            "every": 2,
            "graph": [[1, 0.5, 0], [0, 1, 0], [0.5, 0, 1]],
            "targets": [0, 1, 1],
            "initial": [1, 2, 3],
        },
    ],
    ids=str,
)
def test_the_contract_holds_in_other_configurations(
    config: dict[str, Any], method_contract: Callable[..., None]
) -> None:
    method_contract(config)
