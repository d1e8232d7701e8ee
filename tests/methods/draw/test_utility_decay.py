"""Scaling laws for data filtering: weights that decay with repetition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from steelyard_server.core.events import ColumnSet, DatasetGrown, IdsRetired
from steelyard_server.policies.draw.utility_decay import (
    best_buckets,
    effective_utility,
    exponent_of_epoch,
    mixture_utility,
)
from steelyard_server.policies.policy import PolicyError, parse_policy
from steelyard_server.runs import snapshot

ERROR_RATE = 1e-6
"""Chance that a right draw fails a statistical test, had the seed not been fixed."""
DECAY = {"method": "utility_decay", "sampling": "independent"}
LAW = {"a": 0.02, "b": -0.18, "c": 2.0, "d": 0.1}


# ---- the law of the paper ----


@pytest.mark.parametrize("seen", [50_000, 100_000, 200_000])
def test_the_utility_is_that_of_the_golden(golden: Any, seen: int) -> None:
    expected = golden(f"slfd/effective_utility n={seen} a=.02 b=-.18 c=2 d=.1 epoch=100k")
    assert effective_utility(seen, 100_000, **LAW) == pytest.approx(expected, abs=1e-6)


def test_the_exponents_are_those_of_the_golden(golden: Any) -> None:
    found = [exponent_of_epoch(-0.18, 2.0, epoch) for epoch in range(5)]
    assert found == pytest.approx(golden("slfd/b_k for b=-.18, half-life c=2 epochs, k=0..4"), abs=1e-6)


def test_a_partial_epoch_counts_by_what_was_seen_of_it() -> None:
    b = [-0.18 * 0.5 ** (k / 2) for k in range(3)]
    expected = ((0.02 * 1.0) ** b[0] + 0.1) * 2.0 ** b[1] * 1.25 ** b[2]
    assert effective_utility(250_000, 100_000, **LAW) == pytest.approx(expected, rel=1e-10)


def test_a_mixture_has_the_mean_exponent_with_longer_half_lives() -> None:
    mixed = mixture_utility(300_000, 100_000, a=0.02, b=[-0.2, -0.1], c=[2.0, 4.0], d=0.1)
    first = (-0.2 - 0.1) / 2
    second = (-0.2 * 0.5 ** (1 / 4) - 0.1 * 0.5 ** (1 / 8)) / 2
    assert mixed == pytest.approx(((0.02 * 2) ** first + 0.1) * 1.5**second, rel=1e-10)


def test_a_small_budget_is_best_spent_on_the_best_bucket_and_a_large_one_on_more() -> None:
    """As the paper says: how much to filter depends on the compute."""
    law: dict[str, Any] = {"a": 20.0, "b": [-0.2, -0.19, -0.15], "c": [1.0, 1.0, 1.0], "d": 0.1}
    chosen = [best_buckets(budget, 100_000, **law) for budget in (50_000, 300_000, 3_000_000)]
    assert chosen == sorted(chosen)
    assert chosen[0] == 1 < chosen[2]
    # Data that does not wear out is never worth mixing with worse.
    lasting = {**law, "c": [1e9] * 3}
    assert best_buckets(3_000_000, 100_000, **lasting) == 1


# ---- the draw ----


def served(run: Any, ids: list[int], times: int) -> None:
    for _ in range(times):
        run.apply(type(run.draw())(**{**fields(run.draw()), "ids": np.array(ids)}))
        run.close_below(run.next_step)


def fields(event: Any) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__slots__}


def test_weights_halve_with_each_half_life_of_draws(begin: Any, law: Any) -> None:
    config = {**DECAY, "half_lives": [2.0, 1.0]}
    run = begin(config, 4, batch_size=2, columns={"bucket": [0, 0, 1, 1]})
    served(run, [0, 2], 3)
    weights = np.array([0.5**1.5, 1.0, 0.5**3, 1.0])
    assert law(run) == pytest.approx(weights / weights.sum(), rel=1e-6)
    # An id that stands twice in a batch was drawn twice.
    served(run, [1, 1], 1)
    weights[1] = 0.5
    assert law(run) == pytest.approx(weights / weights.sum(), rel=1e-6)
    run.check()


def test_batches_follow_the_formula(begin: Any) -> None:
    run = begin({**DECAY, "half_lives": [3.0], "bucket": None}, 20, batch_size=4000)
    counts = np.zeros(20)
    for _ in range(3):
        powers = 0.5 ** (counts / 3)
        expected = powers / powers.sum() * 4000
        drawn = run.draw()
        fresh = np.bincount(drawn.ids, minlength=20)
        assert float(((fresh - expected) ** 2 / np.maximum(expected, 5)).sum()) < stats.chi2.isf(
            ERROR_RATE, 19
        )
        part = drawn.ids[:10]
        served(run, part.tolist(), 1)
        counts += np.bincount(part, minlength=20)


def test_counts_far_apart_and_far_down_keep_their_proportions(begin: Any, law: Any) -> None:
    run = begin({**DECAY, "half_lives": [0.5], "bucket": None}, 3, batch_size=3)
    served(run, [0, 1, 2], 200)
    served(run, [2, 2, 2], 1)
    assert law(run) == pytest.approx(np.array([1, 1, 2.0**-6]) / (2 + 2.0**-6), rel=1e-4)
    run.check()


def test_examples_without_a_bucket_are_treated_like_the_last_one(begin: Any, law: Any) -> None:
    run = begin({**DECAY, "half_lives": [4.0, 1.0]}, 3, batch_size=3, columns={"bucket": [0, 1, np.nan]})
    served(run, [0, 1, 2], 2)
    weights = np.array([0.5**0.5, 0.25, 0.25])
    assert law(run) == pytest.approx(weights / weights.sum(), rel=1e-6)


def test_new_examples_have_their_whole_weight_and_a_bucket_that_comes_later_counts(
    begin: Any, law: Any
) -> None:
    run = begin({**DECAY, "half_lives": [1.0, 2.0]}, 2, batch_size=2, columns={"bucket": [0, 0]})
    served(run, [0, 1], 2)
    run.apply(DatasetGrown(3))
    assert law(run) == pytest.approx(np.array([0.25, 0.25, 1]) / 1.5, rel=1e-6)
    run.apply(ColumnSet("bucket", np.array([0]), np.array([1.0], np.float32)))
    assert law(run) == pytest.approx(np.array([0.5, 0.25, 1]) / 1.75, rel=1e-6)
    run.apply(IdsRetired(np.array([2])))
    assert law(run) == pytest.approx(np.array([0.5, 0.25, 0]) / 0.75, rel=1e-6)
    run.check()


BUDGET = {**DECAY, "a": 20.0, "d": 0.1, "exponents": [-0.2, -0.19, -0.05], "half_lives": [1.0, 1.0, 1.0]}


def test_with_a_budget_only_the_buckets_that_it_is_best_spent_on_are_drawn(begin: Any, law: Any) -> None:
    for budget, kept in ((50_000, [0]), (3_000_000, [0, 1])):
        config = {**BUDGET, "budget": budget, "bucket_size": 100_000}
        run = begin(config, 6, columns={"bucket": [2, 0, 1, 0, 1, np.nan]})
        buckets = np.array([2, 0, 1, 0, 1, 2])
        assert np.array_equal(law(run) > 0, np.isin(buckets, kept))
        run.check()
    # It may move to a bucket that counts, and back.
    run.apply(ColumnSet("bucket", np.array([0, 1]), np.array([0.0, 2.0], np.float32)))
    assert np.flatnonzero(law(run)).tolist() == [0, 2, 3, 4]
    run.check()


def test_a_checkpoint_from_before_the_first_draw_leaves_the_choice_to_that(begin: Any, law: Any) -> None:
    config = {**BUDGET, "budget": 50_000, "bucket_size": 100_000}
    run = begin(config, 6, columns={"bucket": [2, 0, 1, 0, 1, 2]})
    run.apply(DatasetGrown(8))
    assert run.get_drawer_state() is not None
    taken = snapshot.take(run)
    again = snapshot.restore(taken.meta, taken.blobs, taken.columns)
    assert np.flatnonzero(law(again)).tolist() == np.flatnonzero(law(run)).tolist() == [1, 3]


def test_a_distinct_batch_that_the_kept_buckets_cannot_fill_is_filled_from_the_others(begin: Any) -> None:
    config = {**BUDGET, "sampling": "distinct", "budget": 50_000, "bucket_size": 100_000}
    run = begin(config, 6, batch_size=4, columns={"bucket": [2, 0, 1, 0, 1, 2]})
    for _ in range(10):
        drawn = run.draw()
        assert {1, 3} < set(drawn.ids.tolist())
        assert len(set(drawn.ids.tolist())) == 4
        run.apply(drawn)
        run.close_below(run.next_step)
        run.check()


# ---- what it is for ----


def test_it_turns_away_from_what_was_repeated_and_a_law_that_never_decays_does_not(begin: Any) -> None:
    """A tenth of the data was drawn often before; how much of the next epoch is of it?"""
    shares = {}
    for name, half_life in (("decays", 1.0), ("never", 1e9)):
        run = begin({**DECAY, "half_lives": [half_life], "bucket": None}, 100, batch_size=10)
        served(run, list(range(10)), 6)
        drawn: list[int] = []
        for _ in range(10):
            batch = run.draw()
            run.apply(batch)
            run.close_below(run.next_step)
            drawn += batch.ids.tolist()
        shares[name] = sum(example < 10 for example in drawn) / len(drawn)
    assert shares["decays"] <= 0.03
    assert shares["never"] >= 0.05


def test_in_the_long_run_each_bucket_is_drawn_in_proportion_to_its_half_life(begin: Any) -> None:
    """Weights are equal where counts are as the half-lives: data that lasts is repeated more."""
    run = begin({**DECAY, "half_lives": [1.0, 4.0]}, 20, batch_size=20, columns={"bucket": np.arange(20) % 2})
    counts = np.zeros(20)
    for _ in range(100):
        drawn = run.draw()
        run.apply(drawn)
        run.close_below(run.next_step)
        counts += np.bincount(drawn.ids, minlength=20)
    assert counts[1::2].sum() / counts[::2].sum() == pytest.approx(4.0, rel=0.1)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"half_lives": []}, "half_lives"),
        ({"half_lives": [0.0]}, "half_lives.0"),
        ({"a": 1.0}, "expected budget too"),
        ({"budget": 10}, "expected bucket_size, exponents, a too"),
        ({"budget": 10, "bucket_size": 10, "a": 1.0, "exponents": [-0.1, -0.2]}, "as many exponents"),
        ({"budget": 10**9, "bucket_size": 10, "a": 1.0, "exponents": [-0.1]}, "at most 10000 epochs"),
        ({"budget": 10, "bucket_size": 10, "a": 1.0, "exponents": [0.1]}, "exponents.0"),
    ],
)
def test_parameters_out_of_range_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_policy({"method": "utility_decay", **config}, {"method": "uniform"})


def test_a_bucket_that_has_no_half_life_is_refused() -> None:
    policy = parse_policy({"method": "utility_decay", "half_lives": [1.0, 2.0]}, {"method": "uniform"})
    assert policy.objection("bucket", np.array([0, 1, np.nan], np.float32)) is None
    assert policy.objection("other", np.array([7.0], np.float32)) is None
    for wrong in (2.0, -1.0, 0.5):
        objection = policy.objection("bucket", np.array([0, wrong], np.float32))
        assert objection is not None
        assert f"got {wrong:g} at position 1" in objection


def test_it_reads_no_losses_so_they_may_weigh() -> None:
    policy = parse_policy({"method": "utility_decay"}, {"method": "linupper"})
    assert not policy.reads_reports


def test_a_mix_fills_its_batch_also_with_what_the_buckets_left_out(life: Callable[..., Any]) -> None:
    law = {"budget": 100, "bucket_size": 100, "exponents": (-0.5, -0.01), "a": 1e4}
    draw = {"method": "utility_decay", "bucket": "b", "half_lives": (1.0, 1.0), **law, "sampling": "distinct"}
    columns = {"group": [0] * 90 + [1] * 10, "b": [0] * 100}
    run = life(draw, 100, 32, columns=columns, mix={"method": "group_balanced"})
    run.draw()
    run.grow(1100)
    # The second group grows by examples of a bucket that is not drawn from, and the first is nearly gone.
    for name in ("group", "b"):
        run.state.apply(ColumnSet(name, np.arange(100, 1100), np.ones(1000, np.float32)))
    run.state.apply(IdsRetired(np.arange(85)))
    drawn = run.draw()
    chances = dict(zip(drawn.ids.tolist(), drawn.probability.tolist(), strict=True))
    assert len(chances) == 32
    np.testing.assert_allclose([chances[one] * 32 for one in range(85, 100)], 1, rtol=1e-9)
    others = [chance for one, chance in chances.items() if one >= 100]
    np.testing.assert_allclose(others, 17 / 1000 / 32, rtol=1e-9)
