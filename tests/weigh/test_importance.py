"""Importance weights undo the bias of the draw."""

import numpy as np
import pytest

from steelyard.weigh import weights


def test_the_weighted_mean_is_unbiased_whatever_the_probabilities_are() -> None:
    # Exact, not sampled: the expectation over the draw is the sum of p_i w_i L_i.
    losses = np.array([0.5, 1.0, 2.0, 4.0])
    for p in ([0.1, 0.2, 0.3, 0.4], [0.97, 0.01, 0.01, 0.01]):
        result = weights(losses, {"method": "importance"}, probability=np.array(p), examples=4)
        assert float(np.sum(np.array(p) * result * losses)) == pytest.approx(losses.mean(), rel=1e-14)


def test_a_uniform_draw_weighs_one() -> None:
    result = weights(np.ones(3), {"method": "importance"}, probability=np.full(3, 1 / 8), examples=8)
    np.testing.assert_array_equal(result, np.ones(3))


def test_float32_losses_get_the_rounded_weights_of_exact_probabilities() -> None:
    p = np.array([1e-9, 3e-9, 0.5])
    result = weights(np.ones(3, np.float32), {"method": "importance"}, probability=p, examples=10**9)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, (1 / (p * 1e9)).astype(np.float32))


def test_padding_and_impossible_probabilities_weigh_nothing() -> None:
    p = np.array([0.5, 0.25, 0.0, np.nan, -1.0])
    mask = np.array([False, True, True, True, True])
    for normalise, expected in (("none", 1.0), ("batch_max", 1.0)):
        config = {"method": "importance", "normalise": normalise}
        result = weights(np.ones(5), config, probability=p, examples=4, mask=mask)
        np.testing.assert_array_equal(result, [0, expected, 0, 0, 0])


def test_the_largest_weight_of_the_batch_is_one_under_batch_max() -> None:
    config = {"method": "importance", "beta": 0.5, "normalise": "batch_max"}
    result = weights(np.ones(2), config, probability=np.array([0.1, 0.4]), examples=7)
    np.testing.assert_allclose(result, [1.0, 0.5], rtol=1e-15)
    nothing = np.zeros(2, dtype=np.bool_)
    result = weights(np.ones(2), config, probability=np.array([0.1, 0.4]), examples=7, mask=nothing)
    np.testing.assert_array_equal(result, [0.0, 0.0])
    empty = np.empty(0)
    assert weights(empty, config, probability=empty, examples=7).shape == (0,)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="importance: expected the probability .* got no probability"):
        weights(np.ones(2), {"method": "importance"}, examples=4)
    with pytest.raises(ValueError, match="got no examples"):
        weights(np.ones(2), {"method": "importance"}, probability=np.ones(2))
    with pytest.raises(ValueError, match="expected at least 1 example, got 0"):
        weights(np.ones(2), {"method": "importance"}, probability=np.ones(2), examples=0)
    with pytest.raises(ValueError, match=r"expected probability of shape \(2,\) as the losses, got \(3,\)"):
        weights(np.ones(2), {"method": "importance"}, probability=np.ones(3), examples=4)
