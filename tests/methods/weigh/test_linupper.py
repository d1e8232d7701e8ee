"""LinUpper."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, weights

LOSSES = np.array([0.5, 1.0, 2.0, 4.0])


@pytest.mark.parametrize("r", [1.0, 0.4])
def test_weights_are_those_of_the_authors_code(golden: Callable[[str], Any], r: float) -> None:
    expected = golden(f"seed/linupper/r={r}")
    result = weights(LOSSES, {"method": "linupper", "r": r})
    np.testing.assert_allclose(result, expected["w_sumB"], rtol=0, atol=5.1e-7)
    rule: Any = parse({"method": "linupper", "r": r})
    np.testing.assert_allclose(rule.score(np, np.array(expected["h"])), expected["f"], rtol=0, atol=2e-6)


def test_equal_losses_and_a_single_one_weigh_the_same(golden: Callable[[str], Any]) -> None:
    for name in ("all-equal", "single"):
        expected = np.array(golden(f"seed/linupper/{name}")["w_sum1"])
        result = weights(np.full(len(expected), 2.7), {"method": "linupper", "r": 0.4})
        np.testing.assert_array_equal(result, expected * len(expected))


def test_the_formula_in_plain_numpy() -> None:
    h = 2 * (LOSSES - 0.5) / 3.5 - 1
    mass = np.exp(np.minimum(h + 1, 1) / 0.4)
    np.testing.assert_allclose(
        weights(LOSSES, {"method": "linupper", "r": 0.4}), 4 * mass / mass.sum(), rtol=1e-14
    )


def test_the_objective_of_two_ranks_is_the_authors(golden: Callable[[str], Any]) -> None:
    expected = golden("seed/scalar linupper r=0.4, 2 ranks, equal len")
    per_rank = (weights(LOSSES, {"method": "linupper", "r": 0.4}) * LOSSES).reshape(2, 2).mean(axis=1)
    np.testing.assert_allclose(per_rank, expected["per_rank_fsdp"], rtol=0, atol=5.1e-7)
    assert per_rank.mean() == pytest.approx(expected["global_after_ddp_mean_fsdp"], abs=5.1e-7)


def test_it_beats_uniform_where_hard_examples_are_worth_learning(regression: Callable[..., float]) -> None:
    uniform = regression({"method": "uniform"})
    assert regression({"method": "linupper"}) < 0.3 * uniform
    assert regression({"method": "linupper", "r": 0.4}) < 0.01 * uniform


def test_it_loses_where_one_label_in_twenty_is_an_outlier(regression: Callable[..., float]) -> None:
    uniform = regression({"method": "uniform"}, 0.05)
    assert regression({"method": "linupper"}, 0.05) > 1.2 * uniform
    assert regression({"method": "linupper", "r": 0.4}, 0.05) > 3 * uniform


def test_with_the_outliers_clipped_it_beats_uniform_again(regression: Callable[..., float]) -> None:
    uniform = regression({"method": "uniform"}, 0.05)
    assert regression({"method": "linupper", "clip": 0.2}, 0.05) < 0.8 * uniform
    assert regression({"method": "linupper", "r": 0.4, "clip": 0.2}, 0.05) < 0.8 * uniform
