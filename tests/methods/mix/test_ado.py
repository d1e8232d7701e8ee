"""ADO, and the power laws that it fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.optimize import minimize

from steelyard_server.policies.mix import GroupReport, power_law
from steelyard_server.policies.mix.ado import Ado
from steelyard_server.policies.mix.odm import Odm
from steelyard_server.policies.mix.shares import with_least

SIZES = np.array([100, 100])
Reports = Callable[..., GroupReport]


class PowerLaw(NamedTuple):
    floor: float
    gain: float
    exponent: float


def fit(n: Any, losses: Any, weights: Any) -> PowerLaw | None:
    """One group's curve."""
    laws = power_law.fit(n, losses[None], weights[None])
    return PowerLaw(laws.floor[0], laws.gain[0], laws.exponent[0]) if laws.fitted[0] else None


def curve(law: PowerLaw, n: Any) -> Any:
    return np.exp(law.floor) + np.exp(law.gain) * n**-law.exponent


def test_shares_are_raised_to_the_least_as_in_the_authors_code(golden: Callable[[str], Any]) -> None:
    want = golden("ado/clip_min_probability([.98,.015,.005],.01)")
    np.testing.assert_allclose(with_least(np.array([0.98, 0.015, 0.005]), 0.01), want, atol=5e-7)


@pytest.mark.parametrize(
    ("floor", "gain", "exponent"), [(0.7, 3.0, 0.4), (-0.4, 3.3, 0.6), (1.0, 3.7, 0.3), (0.3, 2.0, 0.15)]
)
def test_the_fit_finds_the_curve_and_wild_losses_move_nothing(
    floor: float, gain: float, exponent: float
) -> None:
    n, true = np.linspace(1000.0, 64_000.0, 64), PowerLaw(floor, gain, exponent)
    losses = curve(true, n)
    losses[[3, 40]] = [1e30, 1e-30]
    found = fit(n, losses, np.ones(64))
    assert found is not None
    np.testing.assert_allclose(curve(found, n), curve(true, n), rtol=2e-3)
    slope = [law.exponent * (curve(law, n[-1]) - np.exp(law.floor)) for law in (found, true)]
    assert slope[0] == pytest.approx(slope[1], rel=0.03)


@pytest.mark.parametrize("seed", range(2))
def test_the_fit_is_as_good_as_lbfgs_from_a_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, true = np.linspace(1000.0, 64_000.0, 64), PowerLaw(0.5, 3.3, 0.45)
    losses = curve(true, n) * np.exp(0.02 * rng.normal(size=64))

    def cost(p: Any) -> float:
        size = np.abs(np.logaddexp(p[0], p[1] - p[2] * np.log(n)) - np.log(losses))
        return float(np.where(size < 1e-3, 0.5 * size**2, 1e-3 * (size - 5e-4)).sum())

    grid = [(e, a, x) for e in (-1.0, 0.5) for a in (1.0, 4.0) for x in (0.4,)]
    bounds = [(-60, 100), (-60, 100), (0, 3)]
    best = min(minimize(cost, start, method="L-BFGS-B", bounds=bounds).fun for start in grid)
    found = fit(n, losses, np.ones(64))
    assert found is not None
    assert cost([found.floor, found.gain, found.exponent]) < best * 1.01


def test_groups_are_fitted_as_if_each_were_alone() -> None:
    rng = np.random.default_rng(5)
    n = np.linspace(100.0, 6400.0, 32)
    losses = 1.0 + rng.uniform(3, 30, (70, 1)) * n ** -rng.uniform(0.2, 0.7, (70, 1))
    weights = (rng.random((70, 32)) < 0.8).astype(np.float64)
    weights[7] = 0.0
    together = power_law.fit(n, losses, weights)
    assert np.flatnonzero(~together.fitted).tolist() == [7]
    for group in (0, 7, 69):
        alone = fit(n, losses[group], weights[group])
        row = (together.floor[group], together.gain[group], together.exponent[group])
        assert row == (alone or (0.0, 0.0, 0.0))


def test_too_few_points_or_none_above_zero_are_not_fitted() -> None:
    n = np.arange(1.0, 9.0)
    assert fit(n[:3], np.ones(3), np.ones(3)) is None
    assert fit(n, -np.ones(8), np.ones(8)) is None
    assert fit(n, np.ones(8), np.zeros(8)) is None
    flat = fit(n, np.full(8, 2.0), np.ones(8))
    assert flat is not None
    np.testing.assert_allclose(curve(flat, n), 2.0, rtol=1e-3)


def test_the_mix_follows_its_formula_from_the_fitted_curves(report_of: Reports) -> None:
    rule = Ado(prior=(3.0, 1.0), credit=0.7, least=0.15, average_share=0.8, history=0.6)
    start = dict(rule.start(SIZES))
    laws = {"floor": [0.5, 0.1], "gain": [1.0, 2.0], "exponent": [0.02, 0.3], "fitted": [1.0, 1.0]}
    state: Any = {**start, **laws, "examples": [998.0]}
    prior = np.array([0.75, 0.25])
    h, average, p = prior, prior, prior
    for t in range(1, 4):
        state = rule.update(state, report_of(SIZES, step=t, loss=[5.0, 5.0]))
        n = 998.0 + 2 * t
        h = 0.6 * h + 0.4 * 0.5
        slope = np.array([0.05, 0.3]) * np.exp([1.0, 2.0]) * n ** -np.array([0.02, 0.3]) / n
        d = slope * prior * h**0.7
        d = np.maximum(d / d.sum(), 0.15)
        d /= d.sum()
        p = 0.8 * average + 0.2 * d
        average = average + (d - average) / (t + 1)
    np.testing.assert_allclose(rule.masses(state, SIZES, 4), p, rtol=1e-10)
    np.testing.assert_allclose(state["average"], average, rtol=1e-10)


def falling(effort: Any, step: int) -> Any:
    """The first domain has the greater loss and learns nothing more, the second one still falls."""
    n = effort.sum() + 1000.0
    return np.array([5.0 + 0.2 * n**-0.1, 1.0 + 40.0 * n**-0.4])


def test_the_domain_whose_loss_still_falls_gains_and_the_one_with_the_greater_loss_does_not(
    train: Callable[..., Any],
) -> None:
    rule = Ado(ignored=20, every=40, average_share=0.5)
    shares = train(rule, SIZES, falling, 200, noise=0.02).shares
    np.testing.assert_allclose(shares[:59], 0.5)
    assert shares[-1][1] > 0.8, shares[-1]


def test_a_bandit_by_the_loss_itself_takes_the_other_domain(train: Callable[..., Any]) -> None:
    assert train(Odm(updater="exp3"), SIZES, falling, 200, noise=0.02).shares[-1][0] > 0.6


def test_losses_of_the_first_steps_are_not_fitted(train: Callable[..., Any]) -> None:
    def early(effort: Any, step: int) -> Any:
        return np.array([1e6, 1e-6]) if step < 20 else falling(effort, step)

    rule = Ado(ignored=20, every=40, average_share=0.5)
    shares = [train(rule, SIZES, f, 100, noise=0.02).shares[-1] for f in (early, falling)]
    np.testing.assert_allclose(shares[0], shares[1], rtol=1e-9)


def test_points_stay_few_and_keep_every_loss(report_of: Reports) -> None:
    rule = Ado(ignored=0, every=10_000, points=8)
    state = rule.start(SIZES)
    for step in range(101):
        state = rule.update(state, report_of(SIZES, step, loss=[float(step), 1.0]))
    assert len(state["ends"]) < 8
    total = sum(state["sums"][::2]) + state["sum"][0]
    assert (total, sum(state["counts"][::2]) + state["count"][0]) == (5050.0, 101.0)
    width = state["width"][0]
    assert state["ends"] == [2 * width * (i + 1) for i in range(len(state["ends"]))]


def test_a_domain_without_reports_has_the_mean_slope_and_later_ones_join(train: Callable[..., Any]) -> None:
    rule = Ado(ignored=5, every=20, average_share=0.0)
    state = train(rule, SIZES, falling, 60, noise=0.01).state
    more = np.array([100, 100, 100])
    grown = rule.grown(state, more)
    assert [len(grown[name]) for name in ("h", "sums")] == [3, 3 * len(grown["ends"])]
    values = {"loss": np.array([5.0, 2.0])}
    masses = rule.masses(rule.update(grown, GroupReport(60, np.array([0, 1]), values, more)), more, 61)
    assert np.isfinite(masses).all()
    assert masses[2] >= 0.009


def test_nothing_to_read_changes_nothing_but_the_history(report_of: Reports) -> None:
    rule = Ado()
    state = rule.start(SIZES)
    empty = GroupReport(5, np.array([-1]), {"loss": np.array([1.0])}, SIZES)
    assert rule.update(state, empty) == state


@pytest.mark.parametrize("fields", [{"points": 2}, {"history": 1}, {"least": 1}, {"every": 0}])
def test_bad_parameters_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Ado.parse(fields)


def test_a_prior_of_another_number_of_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="mix.prior: expected one number for each of the 2 groups"):
        Ado(prior=(1, 2, 3)).start(SIZES)


@pytest.mark.parametrize(
    "config",
    [
        {"method": "ado", "ignored": 0, "every": 3, "points": 8},
        {"method": "ado", "ignored": 1, "every": 3, "prior": [1, 2, 0]},
    ],
    ids=str,
)
def test_the_contract_holds_in_other_configurations(
    config: dict[str, Any], method_contract: Callable[..., None]
) -> None:
    method_contract(config)
