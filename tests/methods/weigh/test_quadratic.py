"""Quadratic."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, weights

LOSSES = np.array([0.5, 1.0, 2.0, 4.0])


@pytest.mark.parametrize("r", [1.0, 0.4])
def test_weights_are_those_of_the_authors_code(golden: Callable[[str], Any], r: float) -> None:
    expected = golden(f"seed/quadratic(mid)/r={r}")
    result = weights(LOSSES, {"method": "quadratic", "r": r})
    np.testing.assert_allclose(result, expected["w_sumB"], rtol=0, atol=5.1e-7)
    rule: Any = parse({"method": "quadratic", "r": r})
    np.testing.assert_allclose(rule.score(np, np.array(expected["h"])), expected["f"], rtol=0, atol=2e-6)


def test_equal_losses_and_a_single_one_weigh_the_same(golden: Callable[[str], Any]) -> None:
    for name in ("all-equal", "single"):
        expected = np.array(golden(f"seed/quadratic(mid)/{name}")["w_sum1"])
        result = weights(np.full(len(expected), 2.7), {"method": "quadratic", "r": 0.4})
        np.testing.assert_array_equal(result, expected * len(expected))


def test_the_formula_in_plain_numpy() -> None:
    h = 2 * (LOSSES - 0.5) / 3.5 - 1
    mass = np.exp(1 - h**2)
    np.testing.assert_allclose(weights(LOSSES, {"method": "quadratic"}), 4 * mass / mass.sum(), rtol=1e-14)


def test_it_comes_between_uniform_and_linupper_in_the_clean_regression(
    regression: Callable[..., float],
) -> None:
    order = [regression({"method": method}) for method in ("linupper", "quadratic", "uniform")]
    assert order == sorted(order)
    assert regression({"method": "quadratic", "r": 0.4}) < 0.2 * order[-1]


def test_the_extremes_are_its_opposite(regression: Callable[..., float]) -> None:
    assert regression({"method": "extremes"}) > regression({"method": "quadratic"})


def test_it_bears_outliers_that_linupper_does_not(regression: Callable[..., float]) -> None:
    assert regression({"method": "quadratic"}, 0.05) < regression({"method": "linupper"}, 0.05)
