"""Focal."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, server_only, weights

LOSSES = np.array([0.5, 1.0, 2.0, 4.0])


def test_weights_are_those_of_the_focal_loss(golden: Callable[[str], Any]) -> None:
    expected = golden("focal/gamma=2 weight (1-p)^2 with p=exp(-loss)")
    np.testing.assert_allclose(weights(LOSSES, {"method": "focal"}), expected, rtol=0, atol=5.1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_the_formula_in_plain_numpy(gamma: float) -> None:
    p = np.array([0.01, 0.3, 0.9, 0.999])
    result = weights(-np.log(p), {"method": "focal", "gamma": gamma})
    np.testing.assert_allclose(result, (1 - p) ** gamma, rtol=1e-9)


def test_alpha_weighs_the_two_labels_apart() -> None:
    config = {"method": "focal", "alpha": 0.25, "label": "positive"}
    label = np.array([1.0, 0.0, 1.0, np.nan])
    result = weights(LOSSES, config, columns={"positive": label})
    plain = weights(LOSSES, {"method": "focal"})
    np.testing.assert_allclose(result, plain * [0.25, 0.75, 0.25, 0.5], rtol=1e-15)
    assert result.dtype == np.float64
    assert weights(LOSSES.astype(np.float32), config, columns={"positive": label}).dtype == np.float32
    assert "'positive'" in str(server_only(parse(config)))
    with pytest.raises(ValueError, match="expected the column 'positive', got none"):
        weights(LOSSES, config)


def test_many_easy_examples_do_not_drown_a_few_hard_ones() -> None:
    easy, hard = np.full(10_000, 0.02), np.full(10, 3.0)

    def share_of_easy(config: Any) -> float:
        losses = np.concatenate([easy, hard])
        parts = weights(losses, config) * losses
        return float(parts[: easy.size].sum() / parts.sum())

    assert share_of_easy({"method": "uniform"}) > 0.8
    assert share_of_easy({"method": "focal", "gamma": 0.0}) > 0.8
    assert share_of_easy({"method": "focal"}) < 0.01


def test_it_gives_up_easy_examples_for_hard_ones(fit: Callable[..., Any]) -> None:
    # One parameter, which most examples want large and one in twenty wants small.
    generator = np.random.Generator(np.random.Philox(6))
    hard = np.arange(1000) % 20 == 0
    inputs = np.where(hard, -0.5, 1.0)[:, np.newaxis] + 0.1 * generator.normal(size=(1000, 1))

    def losses(config: Any) -> tuple[float, float]:
        found = np.logaddexp(0.0, -inputs @ fit(config, inputs, np.ones(1000), logistic=True, rate=1.0))
        return float(found[hard].mean()), float(found[~hard].mean())

    hard_loss, easy_loss = losses({"method": "focal"})
    uniform_hard, uniform_easy = losses({"method": "uniform"})
    assert hard_loss < 0.7 * uniform_hard
    assert easy_loss > 2 * uniform_easy
    assert losses({"method": "focal", "gamma": 5.0})[0] < hard_loss


def test_losses_below_zero_and_beyond_all_measure_stay_within_bounds() -> None:
    losses = np.array([-1e30, -0.0, 1e30, 3e38, np.nan, np.inf], np.float32)
    np.testing.assert_array_equal(weights(losses, {"method": "focal"}), [0, 0, 1, 1, 0, 0])
    assert weights(np.array([1e-9]), {"method": "focal", "gamma": 1.0})[0] == pytest.approx(1e-9, rel=1e-6)


@pytest.mark.parametrize("change", [{"gamma": -1}, {"alpha": 2.0}, {"label": ""}])
def test_bad_parameters_are_named(change: Any) -> None:
    with pytest.raises(ValueError, match=f"focal.{next(iter(change))}: expected"):
        parse({"method": "focal", **change})
