"""Loss rank slice."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, weights


def test_the_slice_is_that_of_the_sorted_losses() -> None:
    losses = np.random.Generator(np.random.Philox(1)).permutation(16).astype(np.float64)
    by_rank = np.argsort(-losses)
    for portion in range(8):
        result = weights(losses, {"method": "loss_rank_slice", "portion": portion})
        expected = np.zeros(16)
        expected[by_rank[2 * portion : 2 * portion + 2]] = 8.0
        np.testing.assert_array_equal(result, expected)


def test_nonfinite_losses_and_padding_are_in_no_slice() -> None:
    losses = np.array([np.nan, 5.0, 4.0, np.inf, 3.0, 2.0, 9.0, 1.0])
    mask = losses != 9.0
    config = {"method": "loss_rank_slice", "fraction": 0.4, "portion": 1}
    result = weights(losses, config, mask=mask)
    np.testing.assert_allclose(result, [0, 0, 0, 0, 3.5, 3.5, 0, 0])


def test_a_batch_too_small_for_the_slice_gives_the_nearest_one() -> None:
    config = {"method": "loss_rank_slice", "portion": 7}
    np.testing.assert_array_equal(weights(np.array([3.0, 1.0, 2.0]), config), [0.0, 3.0, 0.0])
    np.testing.assert_array_equal(weights(np.array([3.0]), config), [1.0])
    np.testing.assert_array_equal(weights(np.array([np.nan]), config), [0.0])


def test_the_second_slice_passes_over_the_outliers_that_the_first_takes(fit: Callable[..., Any]) -> None:
    generator = np.random.Generator(np.random.Philox(7))
    inputs, truth = generator.normal(size=(1000, 4)), np.array([1.0, -0.5, 0.3, 0.8])
    labels = np.where(np.arange(1000) % 20 == 0, 10.0, inputs @ truth)

    def error(config: Any) -> float:
        return float(np.sum((fit(config, inputs, labels) - truth) ** 2))

    first, second = (error({"method": "loss_rank_slice", "portion": portion}) for portion in (0, 1))
    uniform = error({"method": "uniform"})
    assert second < 1e-3 * uniform
    assert first > 10 * uniform


def test_an_outlier_moves_the_slice_by_one_place_only() -> None:
    losses = np.arange(32.0)
    plain = weights(losses, {"method": "loss_rank_slice"})
    losses[0] = 1e30
    moved = weights(losses, {"method": "loss_rank_slice"})
    np.testing.assert_array_equal(np.flatnonzero(plain), [24, 25, 26, 27])
    np.testing.assert_array_equal(np.flatnonzero(moved), [25, 26, 27, 28])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"portion": 8}, "expected a slice within the batch"),
        ({"portion": -1}, "integer of at least 0"),
        ({"fraction": 0}, "fraction: expected a number from 1e-06 to 1"),
    ],
)
def test_bad_parameters_are_named(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse({"method": "loss_rank_slice", **change})
