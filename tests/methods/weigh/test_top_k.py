"""Top k."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, weights


def test_the_highest_losses_share_the_weight_of_all() -> None:
    losses = np.array([0.5, 4.0, 1.0, 2.0, 3.0])
    np.testing.assert_array_equal(weights(losses, {"method": "top_k", "k": 2}), [0, 2.5, 0, 0, 2.5])
    np.testing.assert_array_equal(
        weights(losses, {"method": "top_k", "fraction": 0.6}), np.array([0, 5, 0, 5, 5]) / 3
    )
    np.testing.assert_array_equal(weights(losses, {"method": "top_k"}), np.ones(5))


def test_of_equal_losses_the_earlier_is_taken() -> None:
    np.testing.assert_array_equal(weights(np.ones(4), {"method": "top_k", "k": 1}), [4, 0, 0, 0])


def test_nonfinite_losses_and_padding_are_never_taken() -> None:
    losses = np.array([np.inf, np.nan, 1.0, 2.0, 50.0], np.float32)
    mask = np.array([True, True, True, True, False])
    np.testing.assert_array_equal(weights(losses, {"method": "top_k", "k": 3}, mask=mask), [0, 0, 2, 2, 0])
    np.testing.assert_array_equal(weights(losses[:2], {"method": "top_k"}), [0, 0])


def test_a_fraction_that_rounding_misses_counts_as_whole() -> None:
    # 0.29 times 100 is a little less than 29 in binary.
    dtypes: tuple[Any, ...] = (np.float32, np.float64)
    for dtype in dtypes:
        chosen = weights(np.arange(100, dtype=dtype), {"method": "top_k", "fraction": 0.29}) > 0
        assert chosen.sum() == 29


def test_hard_examples_are_learnt_that_plain_training_leaves(regression: Callable[..., float]) -> None:
    assert regression({"method": "top_k", "fraction": 0.25}) < 0.2 * regression({"method": "uniform"})


def test_planted_noise_is_what_it_picks(fit: Callable[..., Any]) -> None:
    generator = np.random.Generator(np.random.Philox(7))
    inputs, truth = generator.normal(size=(1000, 4)), np.array([1.0, -0.5, 0.3, 0.8])
    labels = np.where(np.arange(1000) % 20 == 0, 10.0, inputs @ truth)

    def error(config: Any) -> float:
        return float(np.sum((fit(config, inputs, labels) - truth) ** 2))

    assert error({"method": "top_k", "fraction": 0.1}) > 20 * error({"method": "uniform"})


def test_the_default_is_the_number_of_the_source_and_both_are_too_many() -> None:
    assert parse({"method": "top_k"}) == parse({"method": "top_k", "k": 64})
    with pytest.raises(ValueError, match="expected k or fraction, got both"):
        parse({"method": "top_k", "k": 3, "fraction": 0.5})
    bad: Any
    for bad in ({"k": 0}, {"fraction": 1.5}, {"fraction": 0}, {"k": 2.5}):
        with pytest.raises(ValueError, match="top_k.*expected"):
            parse({"method": "top_k", **bad})
