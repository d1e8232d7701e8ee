"""Extremes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, weights

LOSSES = np.array([0.5, 1.0, 2.0, 4.0])


@pytest.mark.parametrize("r", [1.0, 0.4])
def test_weights_are_those_of_the_authors_code(golden: Callable[[str], Any], r: float) -> None:
    expected = golden(f"seed/extremes/r={r}")
    result = weights(LOSSES, {"method": "extremes", "r": r})
    np.testing.assert_allclose(result, expected["w_sumB"], rtol=0, atol=5.1e-7)
    rule: Any = parse({"method": "extremes", "r": r})
    np.testing.assert_allclose(rule.score(np, np.array(expected["h"])), expected["f"], rtol=0, atol=2e-6)


def test_equal_losses_and_a_single_one_weigh_the_same(golden: Callable[[str], Any]) -> None:
    for name in ("all-equal", "single"):
        expected = np.array(golden(f"seed/extremes/{name}")["w_sum1"])
        result = weights(np.full(len(expected), 2.7), {"method": "extremes", "r": 0.4})
        np.testing.assert_array_equal(result, expected * len(expected))


def test_the_formula_in_plain_numpy() -> None:
    mass = np.exp(abs(2 * (LOSSES - 0.5) / 3.5 - 1))
    np.testing.assert_allclose(weights(LOSSES, {"method": "extremes"}), 4 * mass / mass.sum(), rtol=1e-14)


def test_both_ends_outweigh_the_middle() -> None:
    low, middle, high = weights(np.array([0.0, 1.0, 2.0]), {"method": "extremes", "r": 0.4})
    assert low == pytest.approx(high)
    assert low / middle == pytest.approx(np.exp(1 / 0.4))


def test_it_is_behind_uniform_in_the_clean_regression(regression: Callable[..., float]) -> None:
    # Most of its weight goes to the lowest losses: those that are learnt already.
    uniform = regression({"method": "uniform"})
    assert regression({"method": "extremes"}) > 1.1 * uniform
    assert regression({"method": "extremes", "r": 0.4}) > 1.3 * uniform
