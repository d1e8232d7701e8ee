"""The paper's transforms as draws from a pool of candidates. The bits of shuffle and sampling: tests/policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from steelyard import weigh
from steelyard_server.core.events import DatasetGrown, IdsRetired
from steelyard_server.policies.draw.candidate_pool import CandidatePool
from steelyard_server.policies.policy import PolicyError, parse_policy

ERROR_RATE = 1e-6
"""Chance that a right draw fails a statistical test, had the seed not been fixed."""
STRATEGIES = ["linupper", "quadratic", "extremes", "upper"]
GOLDENS = {
    "linupper": "seed/linupper",
    "quadratic": "seed/quadratic(mid)",
    "extremes": "seed/extremes",
    "upper": "seed/upper(repo only)",
}
POOL = {"method": "candidate_pool", "sampling": "independent"}


def shares(losses: Any, **config: Any) -> Any:
    weights = np.exp2(CandidatePool(**config).log2_weights(np.array(losses, np.float64)))
    return weights / weights.sum()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("r", [1.0, 0.4])
def test_the_law_of_a_pool_is_that_of_the_golden(golden: Any, strategy: str, r: float) -> None:
    expected = golden(f"{GOLDENS[strategy]}/r={r}")["w_sum1"]
    assert shares([0.5, 1.0, 2.0, 4.0], strategy=strategy, r=r).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("r", "delta"), [(1.0, 1.0), (0.3, 2.0), (5.0, 0.5)])
def test_it_is_what_the_weigh_rule_gives_the_same_losses(strategy: str, r: float, delta: float) -> None:
    losses = np.random.default_rng(4).gamma(1.0, size=50)
    rule = {"method": strategy, "r": r, "delta": delta}
    expected = weigh.weights(losses, rule) / 50
    assert shares(losses, strategy=strategy, r=r, delta=delta) == pytest.approx(expected, rel=1e-10)


def test_batches_are_drawn_from_the_next_batches_of_a_shuffle_by_their_law(begin: Any) -> None:
    losses = np.random.default_rng(8).gamma(1.0, size=200)
    config = {**POOL, "pool": 4, "r": 0.5}
    run = begin(config, 200, batch_size=10, signals={"loss": losses})
    plain = begin({"method": "shuffle"}, 200, batch_size=40)
    for _ in range(5):
        candidates = plain.draw()
        plain.apply(candidates)
        plain.close_below(plain.next_step)
        law = np.zeros(200)
        law[candidates.ids] = shares(losses[candidates.ids], r=0.5)
        drawn = run.draw()
        assert set(drawn.ids.tolist()) <= set(candidates.ids.tolist())
        # 40 of 200 are in the pool: that is a fifth of the law of one that is.
        assert drawn.probability == pytest.approx(law[drawn.ids] / 5, rel=1e-6)
        many = np.bincount(run.drawer.draw(run.next_step, 10).ids, minlength=200)
        assert many[law == 0].sum() == 0
        run.apply(drawn)
        run.close_below(run.next_step)


def test_a_pool_is_drawn_from_as_its_law_says(begin: Any) -> None:
    losses = np.random.default_rng(9).gamma(1.0, size=40)
    # One pool is all there is, so that it is the same for batches of any size.
    run = begin({**POOL, "pool": 1}, 40, batch_size=4000, signals={"loss": losses})
    expected = shares(losses) * 4000
    counts = np.bincount(run.draw().ids, minlength=40)
    assert float(((counts - expected) ** 2 / expected).sum()) < stats.chi2.isf(ERROR_RATE, 39)


def test_the_probability_that_is_told_undoes_the_draw(begin: Any) -> None:
    """The weighted mean over batches is that over the pools, for which there is no Monte Carlo: each id's expected
    copies times its weight is B / pool."""
    losses = np.random.default_rng(10).gamma(1.0, size=120)
    run = begin({**POOL, "pool": 3, "r": 0.4}, 120, batch_size=8, signals={"loss": losses})
    drawn = run.draw()
    assert drawn.probability is not None
    weights = weigh.weights(np.ones(8), {"method": "importance"}, probability=drawn.probability, examples=120)
    copies_a_place = drawn.probability / (24 / 120)
    assert copies_a_place * weights == pytest.approx(np.full(8, 1 / 24), rel=1e-6)


def test_an_epoch_of_pools_has_every_example_as_a_candidate_once(begin: Any, law: Any) -> None:
    run = begin({**POOL, "pool": 4, "sampling": "distinct", "r": 1e12}, 80, batch_size=10)
    candidates: list[int] = []
    for _ in range(2):
        candidates += run.drawer._shuffle.draw(run.next_step, 40).ids.tolist()
        run.apply(run.draw())
        run.close_below(run.next_step)
    assert sorted(candidates) == list(range(80))


def test_never_reported_candidates_weigh_as_much_as_the_greatest_of_their_pool(begin: Any, law: Any) -> None:
    assert shares([np.nan] * 3).tolist() == pytest.approx([1 / 3] * 3)
    p = shares([1.0, np.nan, 3.0, 2.0], strategy="linupper", r=0.5)
    assert p[1] == p[2] == p[3] > p[0]
    run = begin({**POOL, "pool": 1}, 8, signals={"loss": [1.0, *[np.nan] * 6, 1.0]})
    assert run.peek_drawer().never_reported == 6
    assert law(run).tolist() == pytest.approx([1 / 8] * 8)


def test_growth_and_retirement_follow_the_shuffle(begin: Any) -> None:
    run = begin({**POOL, "pool": 2}, 20, batch_size=5)
    run.apply(run.draw())
    run.close_below(1)
    run.apply(DatasetGrown(30))
    run.apply(IdsRetired(np.arange(0, 30, 3)))
    candidates = set()
    for _ in range(8):
        drawn = run.draw()
        candidates |= set(run.drawer._shuffle.draw(0, 10).ids.tolist())
        assert not np.isin(drawn.ids, np.arange(0, 30, 3)).any()
        run.apply(drawn)
        run.close_below(run.next_step)
    assert candidates == set(range(30)) - set(range(0, 30, 3))


@pytest.mark.parametrize("size", [6, 7, 9])
def test_a_distinct_batch_is_found_where_the_pool_meets_the_end_of_an_epoch(begin: Any, size: int) -> None:
    run = begin({"method": "candidate_pool", "pool": 1}, size, batch_size=6)
    for _ in range(20):
        drawn = run.draw()
        assert len(set(drawn.ids.tolist())) == 6
        run.apply(drawn)
        run.close_below(run.next_step)
        run.check()


def test_the_copies_among_fewer_are_those_of_a_distinct_draw_from_the_same_pool(begin: Any) -> None:
    losses = np.random.default_rng(12).gamma(1.0, size=100)
    run = begin(
        {"method": "candidate_pool", "pool": 3, "r": 0.2}, 100, batch_size=10, signals={"loss": losses}
    )
    drawn = run.draw()
    assert drawn.probability is not None
    assert run.drawer.copies(drawn.ids, 10) == pytest.approx(drawn.probability * 10, rel=1e-9)
    candidates = np.sort(run.drawer._shuffle.draw(0, 30).ids)
    for count in (1, 5, 30):
        copies = run.drawer.copies(candidates, count)
        assert copies.sum() == pytest.approx(count * 30 / 100, rel=1e-9)
        assert copies.max() <= 0.3 * (1 + 1e-12)
    outside = np.setdiff1d(np.arange(100), candidates)
    assert run.drawer.copies(outside, 5).tolist() == [0.0] * 70


# ---- what it is for ----


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_outliers_outside_the_pool_do_not_change_its_law(begin: Any, strategy: str) -> None:
    """The range is that of the pool, as it is that of the batch in the paper. Over all rows it would be theirs."""
    losses = np.random.default_rng(11).gamma(1.0, size=100)
    config = {**POOL, "strategy": strategy, "pool": 4}
    candidates = begin(config, 100, batch_size=10).drawer._shuffle.draw(0, 40).ids
    outside = np.setdiff1d(np.arange(100), candidates)[[3, 40]]
    far = losses.copy()
    far[outside] = [1e30, -1e30]
    drawn = [begin(config, 100, batch_size=10, signals={"loss": each}).draw() for each in (losses, far)]
    assert drawn[0].ids.tolist() == drawn[1].ids.tolist()
    assert drawn[0].probability.tolist() == drawn[1].probability.tolist()
    whole = [shares(each, strategy=strategy)[candidates] for each in (losses, far)]
    assert not np.allclose(whole[0], whole[1], rtol=0.1)


def test_the_strategies_prefer_what_the_paper_says(begin: Any) -> None:
    losses = np.linspace(0.0, 1.0, 101)
    mean = {}
    for strategy in STRATEGIES:
        run = begin(
            {**POOL, "strategy": strategy, "pool": 1, "r": 0.2},
            101,
            batch_size=2020,
            signals={"loss": losses},
        )
        drawn = losses[run.draw().ids]
        mean[strategy] = drawn.mean()
        assert ((drawn < 0.1).mean() > 0.1) == (strategy == "extremes")
    assert mean["linupper"] > 0.6 < mean["upper"]
    assert mean["linupper"] < mean["upper"]
    assert mean["quadratic"] == pytest.approx(0.5, abs=0.03) == mean["extremes"]


@pytest.mark.parametrize(
    "config", [{"pool": 0}, {"r": 0.0}, {"strategy": "mid"}, {"delta": -1}, {"min_range": 0}, {"floor": 0.1}]
)
def test_parameters_out_of_range_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=next(iter(config))):
        parse_policy({"method": "candidate_pool", **config}, {"method": "uniform"})


def test_losses_are_not_weighed_by_as_well() -> None:
    with pytest.raises(PolicyError, match="the draw reads last_loss"):
        parse_policy({"method": "candidate_pool"}, {"method": "linupper"})
    parse_policy({"method": "candidate_pool"}, {"method": "importance"})
