"""Mask top."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, server_only, weights


def test_the_highest_of_each_group_are_dropped() -> None:
    losses = np.array([1.0, 5.0, 3.0, 2.0, 9.0, 8.0, 7.0, 6.0, 4.0])
    group = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    result = weights(losses, {"method": "mask_top", "share": 0.3}, columns={"group": group})
    # ceil(0.3 * 4) = 2 of the first and ceil(0.3 * 5) = 2 of the second; 5 of 9 are kept.
    np.testing.assert_allclose(result, np.array([1, 0, 0, 1, 0, 0, 1, 1, 1]) * 9 / 5)


def test_another_signal_may_be_the_salience() -> None:
    config = {"method": "mask_top", "signal": "attention", "group": "slide", "share": 0.5}
    rule = parse(config)
    assert (rule.columns, rule.signals) == (("slide",), ("attention",))
    assert "'attention'" in str(server_only(rule))
    columns = {"slide": np.zeros(4), "attention": np.array([0.1, 0.9, np.nan, 0.8])}
    result = weights(np.ones(4), config, columns=columns)
    np.testing.assert_allclose(result, [2, 0, 2, 0])


def test_one_of_each_group_is_kept_and_what_is_in_none_is_not_masked() -> None:
    losses, group = np.array([5.0, 4.0, 3.0, 9.0]), np.array([0.0, 1.0, 1.0, np.nan])
    result = weights(losses, {"method": "mask_top", "share": 1.0}, columns={"group": group})
    np.testing.assert_allclose(result, np.array([1, 0, 1, 1]) * 4 / 3)


def test_the_pool_lets_lots_decide_among_more() -> None:
    losses, columns = np.arange(20.0), {"group": np.zeros(20)}
    config = {"method": "mask_top", "share": 0.1, "pool": 2.0}
    dropped = np.array([weights(losses, config, columns=columns, seed=1, step=t) == 0 for t in range(4000)])
    assert set(dropped.sum(axis=1)) == {2}
    assert not dropped[:, :16].any()
    # Each of the pool of 4 is dropped half of the time; 4.5 standard deviations.
    assert (abs(dropped[:, 16:].mean(axis=0) - 0.5) < 4.5 * 0.5 / np.sqrt(4000)).all()
    rule = parse(config)
    assert rule.random
    assert not parse({"method": "mask_top"}).random


def test_the_share_falls_to_nothing_along_a_cosine() -> None:
    rule: Any = parse({"method": "mask_top", "share": 0.2, "cosine_steps": 100})
    np.testing.assert_allclose(
        [rule.share_at(step) for step in (0, 50, 100, 10**9)], [0.2, 0.1, 0, 0], atol=1e-15
    )
    losses, columns = np.arange(10.0), {"group": np.zeros(10)}
    for step, kept in [(0, 8), (60, 9), (100, 10)]:
        assert np.count_nonzero(weights(losses, rule, columns=columns, step=step)) == kept


def test_without_the_salient_ones_the_model_learns_from_the_rest(fit: Callable[..., Any]) -> None:
    # In each bag a few of the inputs have a shortcut: a feature so strong that it explains the label by itself.
    generator = np.random.Generator(np.random.Philox(5))
    group = np.arange(3000) % 10
    salient = generator.random(3000) < 0.1
    labels = np.where(generator.random(3000) < 0.5, -1.0, 1.0)
    plain = 0.3 * labels + 0.3 * generator.normal(size=3000)
    shortcut = np.where(salient, 10.0 * labels, 0.0)
    inputs = np.stack([plain, shortcut], axis=1)
    columns = {"group": group.astype(np.float64), "attention": abs(shortcut)}

    def learnt(config: Any) -> Any:
        return fit(config, inputs, labels, logistic=True, columns=columns, steps=200)

    masked = learnt({"method": "mask_top", "signal": "attention", "share": 0.6})
    uniform = learnt({"method": "uniform"})
    assert uniform[1] > 0.3
    assert masked[1] < 0.1 * uniform[1]
    assert masked[0] > 1.05 * uniform[0]


def test_outliers_are_masked_where_they_are_the_highest_of_their_group(fit: Callable[..., Any]) -> None:
    generator = np.random.Generator(np.random.Philox(7))
    inputs, truth = generator.normal(size=(1000, 4)), np.array([1.0, -0.5, 0.3, 0.8])
    labels = np.where(np.arange(1000) % 50 == 0, 10.0, inputs @ truth)
    columns = {"group": np.arange(1000) % 2.0}

    def error(config: Any) -> float:
        return float(np.sum((fit(config, inputs, labels, columns=columns) - truth) ** 2))

    uniform = error({"method": "uniform"})
    assert error({"method": "mask_top", "share": 0.2}) < 0.01 * uniform


def test_any_losses_give_finite_weights() -> None:
    losses = np.array([1e30, -3e38, np.nan, np.inf, 3e38, 1.0], np.float32)
    group = np.array([0.0, 0, 0, 1, 1e30, -1])
    mask = np.array([True, True, True, True, True, False])
    for pool in (1.0, 3.0):
        result = weights(losses, {"method": "mask_top", "pool": pool}, columns={"group": group}, mask=mask)
        assert np.isfinite(result).all()
        np.testing.assert_array_equal(result[[2, 3, 5]], [0, 0, 0])
        assert result.sum() == pytest.approx(5)


@pytest.mark.parametrize(
    "change", [{"share": 0}, {"pool": 0.5}, {"cosine_steps": 0}, {"signal": ""}, {"group": None}]
)
def test_bad_parameters_are_named(change: Any) -> None:
    with pytest.raises(ValueError, match=f"mask_top.{next(iter(change))}: expected"):
        parse({"method": "mask_top", **change})
