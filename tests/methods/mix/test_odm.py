"""Online data mixing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.mix import GroupReport
from steelyard_server.policies.mix.odm import Odm

SIZES = np.array([100, 100, 100])
UPDATERS = ["smoothed", "weighted", "exp3"]
Reports = Callable[..., GroupReport]


def eps(t: int, groups: int = 3) -> float:
    return min(1 / groups, float(np.sqrt(np.log(groups) / (groups * t)))) if t else 1 / groups


@pytest.mark.parametrize("updater", UPDATERS)
def test_the_law_follows_its_formula(report_of: Reports, updater: str) -> None:
    # Up to the fourth report eps is 1/3 and all are alike; the last ones show what rewards do.
    rule, rng = Odm.parse({"updater": updater}), np.random.default_rng(2)
    state, known, p = rule.start(SIZES), np.zeros(3), np.full(3, 1 / 3)
    for t in range(1, 30):
        reward = rng.uniform(0.0, 3.0, 3)
        reward[rng.random(3) < 0.2] = np.nan
        state = rule.update(state, report_of(SIZES, t, loss=reward))
        came = ~np.isnan(reward)
        if updater == "smoothed":
            known[came] = 0.9 * known[came] + 0.1 * np.exp(reward[came])
        elif updater == "weighted":
            known[came] = 0.9 * known[came] + 0.1 * (reward / p)[came]
        else:
            known[came] += (reward / p)[came]
        powers = np.exp(eps(t - 1) * known)
        p = (1 - 3 * eps(t)) * powers / powers.sum() + eps(t)
        np.testing.assert_allclose(rule.masses(state, SIZES, t), p, rtol=1e-12)
    assert np.ptp(p) > 0.01


def rewards(effort: Any, step: int) -> Any:
    """The third domain pays most at first, the first one from step 200 on."""
    return np.array([1.0, 2.0, 3.0]) if step < 200 else np.array([3.0, 2.0, 1.0])


@pytest.mark.parametrize("updater", UPDATERS)
def test_the_domain_with_the_larger_reward_gains_and_every_other_keeps_being_tried(
    train: Callable[..., Any], updater: str
) -> None:
    shares = train(Odm.parse({"updater": updater}), SIZES, rewards, 200, noise=0.1).shares
    assert shares[-1].argmax() == 2
    assert shares[-1][2] > shares[-1][0] + 0.05
    least = np.array([eps(t) for t in range(200)])
    assert (shares.min(axis=1) >= least * (1 - 1e-9)).all()


def test_the_smoothed_form_follows_a_reward_that_changes(train: Callable[..., Any]) -> None:
    shares = train(Odm(), SIZES, rewards, 300, noise=0.1).shares
    assert shares[199].argmax() == 2
    assert shares[-1].argmax() == 0


def test_with_rewards_turned_the_domain_that_pays_least_would_gain(train: Callable[..., Any]) -> None:
    shares = train(Odm(), SIZES, lambda effort, step: -rewards(effort, step), 200).shares
    assert shares[-1].argmax() == 0


def test_a_domain_that_is_not_in_a_report_keeps_what_it_had(report_of: Reports) -> None:
    rule = Odm()
    state = rule.update(rule.start(SIZES), report_of(SIZES, loss=[1.0, 2.0, 3.0]))
    later = rule.update(state, report_of(SIZES, loss=[1.0, np.nan, 3.0]))
    assert later["reward"][1] == state["reward"][1]
    assert rule.update(state, report_of(SIZES, loss=[np.nan] * 3)) == state


@pytest.mark.parametrize("updater", UPDATERS)
def test_an_outlier_leaves_every_domain_its_share(report_of: Reports, updater: str) -> None:
    rule = Odm.parse({"updater": updater})
    state = rule.update(rule.start(SIZES), report_of(SIZES, loss=[1.0, 1.0, 1.0]))
    state = rule.update(state, report_of(SIZES, loss=[1e30, 1.0, -1e30]))
    masses = rule.masses(state, SIZES, 2)
    assert masses.argmax() == 0
    assert masses.min() >= eps(2) * (1 - 1e-9)


def test_a_wild_reward_is_forgotten_by_the_smoothed_form(report_of: Reports) -> None:
    rule = Odm()
    state = rule.update(rule.start(SIZES), report_of(SIZES, loss=[1e30, 1.0, 1.0]))
    for _ in range(300):
        state = rule.update(state, report_of(SIZES, loss=[1.0, 1.0, 1.0]))
    np.testing.assert_allclose(rule.masses(state, SIZES, 301), np.full(3, 1 / 3), atol=0.01)


def test_one_domain_alone_has_everything(report_of: Reports) -> None:
    rule, sizes = Odm(), np.array([10])
    state = rule.update(rule.start(sizes), report_of(sizes, loss=[1.0]))
    assert rule.masses(state, sizes, 1).tolist() == [1.0]


@pytest.mark.parametrize("fields", [{"decay": 1.0}, {"updater": "ucb"}, {"signal": 3}])
def test_bad_parameters_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Odm.parse(fields)


@pytest.mark.parametrize(
    "config",
    [
        {"method": "odm", "updater": "weighted"},
        {"method": "odm", "updater": "exp3"},
    ],
    ids=str,
)
def test_the_contract_holds_in_other_configurations(
    config: dict[str, Any], method_contract: Callable[..., None]
) -> None:
    method_contract(config)
