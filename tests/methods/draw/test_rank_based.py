"""Online batch selection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from steelyard_server.core.events import IdsRetired
from steelyard_server.policies.policy import PolicyError, parse_policy

ERROR_RATE = 1e-6
"""Chance that a right draw fails a statistical test, had the seed not been fixed."""
LOSSES = [0.5, 1.0, 2.0, 4.0]
BY_RANK = {"method": "rank_based", "refresh_steps": 1}


def test_the_law_is_that_of_the_golden(begin: Any, law: Any, golden: Any) -> None:
    expected = golden("online_batch_selection/s_e=100,N=4, by descending loss rank")
    run = begin(BY_RANK, 4, signals={"loss": LOSSES})
    assert law(run).tolist() == pytest.approx(expected["p_for_losses_in_order_.5,1,2,4"], abs=1e-6)
    assert law(run)[::-1].tolist() == pytest.approx(expected["p"], abs=1e-6)


def test_the_first_of_n_is_s_e_times_as_likely_as_one_behind_the_last_would_be(begin: Any, law: Any) -> None:
    losses = np.random.default_rng(5).gamma(1.0, size=50)
    run = begin({**BY_RANK, "s_e": 1e3}, 50, signals={"loss": losses})
    ordered = np.sort(law(run))[::-1]
    ratio = 1e3 ** (1 / 50)
    assert ordered[:-1] / ordered[1:] == pytest.approx(np.full(49, ratio), rel=1e-4)
    assert np.array_equal(np.argsort(law(run)), np.argsort(losses))


def test_the_pressure_falls_exponentially_to_none(begin: Any, law: Any, train: Any) -> None:
    run = begin({**BY_RANK, "decay_steps": 40}, 4, signals={"loss": LOSSES})
    same = lambda ids, step: np.array(LOSSES)[ids]  # noqa: E731
    for step, pressure in ((0, 100.0), (20, 10.0), (30, 100**0.25), (40, 1.0), (60, 1.0)):
        train(run, step - run.next_step, same)
        p = law(run)
        assert p[3] / p[0] == pytest.approx(pressure**0.75, rel=1e-5)
    assert law(run).tolist() == pytest.approx([0.25] * 4)


def test_batches_follow_the_formula(begin: Any) -> None:
    losses = np.random.default_rng(6).gamma(1.0, size=30)
    run = begin({"method": "rank_based"}, 30, batch_size=3000, signals={"loss": losses})
    powers = 100.0 ** (-stats.rankdata(-losses) / 30)
    expected = powers / powers.sum() * 3000
    counts = np.bincount(run.draw().ids, minlength=30)
    assert float(((counts - expected) ** 2 / expected).sum()) < stats.chi2.isf(ERROR_RATE, 29)


def test_equal_losses_share_the_weights_of_their_ranks(begin: Any, law: Any) -> None:
    run = begin(BY_RANK, 4, signals={"loss": [1.0, 3.0, 1.0, 1.0]})
    powers = 100.0 ** (-np.arange(1, 5) / 4)
    rest = powers[1:].mean()
    assert law(run) == pytest.approx(np.array([rest, powers[0], rest, rest]) / powers.sum(), rel=1e-6)


def test_examples_that_were_never_reported_share_the_first_ranks(begin: Any, law: Any, observe: Any) -> None:
    run = begin(BY_RANK, 4)
    assert law(run).tolist() == pytest.approx([0.25] * 4)
    run = begin(BY_RANK, 4)
    observe(run, [1, 2], {"loss": [50.0, 3.0]})
    powers = 100.0 ** (-np.arange(1, 5) / 4)
    first = powers[:2].mean()
    assert law(run) == pytest.approx(np.array([first, powers[2], powers[3], first]) / powers.sum(), rel=1e-6)


def test_retired_examples_have_no_rank(begin: Any, law: Any) -> None:
    run = begin(BY_RANK, 5, signals={"loss": [9.0, *LOSSES]})
    run.apply(IdsRetired(np.array([0])))
    other = begin(BY_RANK, 4, signals={"loss": LOSSES})
    assert law(run)[0] == 0
    assert law(run)[1:].tolist() == pytest.approx(law(other).tolist(), rel=1e-6)


def test_it_sorts_when_it_is_time_and_not_before(begin: Any, law: Any, train: Any) -> None:
    run = begin({"method": "rank_based", "refresh_steps": 5}, 4, signals={"loss": LOSSES})
    before = law(run)
    train(run, 4, lambda ids, step: 100.0 - np.array(LOSSES)[ids])
    assert law(run).tolist() == before.tolist()
    train(run, 1, lambda ids, step: 100.0 - np.array(LOSSES)[ids])
    assert law(run).tolist() != before.tolist()


# ---- what it is for ----


def test_an_outlier_takes_the_draws_from_the_others_by_loss_and_moves_nothing_by_rank(
    begin: Any, law: Any
) -> None:
    """The rank of a loss is all that counts: whether the first is 5 or 1e30."""
    losses = np.random.default_rng(7).gamma(1.0, size=100)
    laws = {}
    for method in ("rank_based", "scored"):
        for greatest in (50.0, 1e30):
            config = {"method": method, "sampling": "independent"}
            signals = {"loss": np.append(losses, greatest)}
            laws[method, greatest] = law(begin(config, 101, signals=signals))
    assert laws["rank_based", 1e30].tolist() == laws["rank_based", 50.0].tolist()
    assert laws["rank_based", 1e30][100] < 0.05
    assert laws["scored", 1e30][100] > 0.999
    assert laws["scored", 50.0][100] < 0.5


@pytest.mark.parametrize(
    "config", [{"s_e": 0.5}, {"s_e": float("inf")}, {"decay_steps": 0}, {"refresh_steps": 0}]
)
def test_parameters_out_of_range_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=f"draw.{next(iter(config))}"):
        parse_policy({"method": "rank_based", **config}, {"method": "uniform"})


def test_losses_are_not_weighed_by_as_well() -> None:
    with pytest.raises(PolicyError, match="the draw reads last_loss"):
        parse_policy({"method": "rank_based"}, {"method": "linupper"})
