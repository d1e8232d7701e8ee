"""Upper."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, weights

LOSSES = np.array([0.5, 1.0, 2.0, 4.0])


@pytest.mark.parametrize("r", [1.0, 0.4])
def test_weights_are_those_of_the_authors_code(golden: Callable[[str], Any], r: float) -> None:
    expected = golden(f"seed/upper(repo only)/r={r}")
    result = weights(LOSSES, {"method": "upper", "r": r})
    np.testing.assert_allclose(result, expected["w_sumB"], rtol=0, atol=5.1e-7)
    rule: Any = parse({"method": "upper", "r": r})
    np.testing.assert_allclose(rule.score(np, np.array(expected["h"])), expected["f"], rtol=0, atol=2e-6)


def test_equal_losses_and_a_single_one_weigh_the_same(golden: Callable[[str], Any]) -> None:
    for name in ("all-equal", "single"):
        expected = np.array(golden(f"seed/upper(repo only)/{name}")["w_sum1"])
        result = weights(np.full(len(expected), 2.7), {"method": "upper", "r": 0.4})
        np.testing.assert_array_equal(result, expected * len(expected))


def test_the_formula_in_plain_numpy() -> None:
    mass = np.exp((LOSSES - 0.5) / 3.5)
    np.testing.assert_allclose(weights(LOSSES, {"method": "upper"}), 4 * mass / mass.sum(), rtol=1e-14)


def test_it_is_not_what_the_fsdp_code_calls_upper(golden: Callable[[str], Any]) -> None:
    other = np.array(golden("seed/linupper/r=1.0")["w_sumB"])
    assert abs(weights(LOSSES, {"method": "upper"}) - other).max() > 0.2


def test_it_beats_uniform_clean_and_loses_with_outliers(regression: Callable[..., float]) -> None:
    assert regression({"method": "upper"}) < 0.4 * regression({"method": "uniform"})
    assert regression({"method": "upper"}, 0.05) > 1.2 * regression({"method": "uniform"}, 0.05)
