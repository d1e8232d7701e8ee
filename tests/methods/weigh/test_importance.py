"""Importance weights undo the bias of the draw."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, remember, server_only, weights

LOSSES = np.array([0.5, 1.0, 2.0, 4.0])


@pytest.mark.parametrize(("beta", "floor"), [(0.4, 0.0), (1.0, 0.0), (0.4, 0.001)])
def test_weights_are_those_of_prioritised_replay(
    golden: Callable[[str], Any], beta: float, floor: float
) -> None:
    expected = golden(f"per/dqn_zoo alpha=0.6 beta={beta} usp={floor}")
    p = LOSSES**0.6 / (LOSSES**0.6).sum()
    p = (1 - floor) * p + floor / 4
    for normalise, key in (("none", "w_unnormalised"), ("batch_max", "w_norm_by_batch_max")):
        config = {"method": "importance", "beta": beta, "normalise": normalise}
        result = weights(LOSSES, config, probability=p, examples=4)
        np.testing.assert_allclose(result, expected[key], rtol=0, atol=5.1e-7)


def test_weights_are_those_of_katharopoulos(golden: Callable[[str], Any]) -> None:
    expected = golden("katharopoulos/weights k=1.0 scores=[.5,1,2,4], one draw of each")
    p = LOSSES / LOSSES.sum()
    np.testing.assert_allclose(p, expected["p"], rtol=0, atol=5.1e-7)
    for config in ({"method": "importance"}, {"method": "importance", "k": 1.0}):
        result = weights(LOSSES, config, probability=p, examples=4)
        np.testing.assert_allclose(result, expected["w"], rtol=0, atol=5.1e-7)


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


def test_beta_rises_linearly_to_one_and_stays() -> None:
    config = {"method": "importance", "beta": 0.4, "beta_steps": 100}
    p = np.array([0.1, 0.4])
    for step, beta in [(0, 0.4), (50, 0.7), (100, 1.0), (10**6, 1.0)]:
        result = weights(np.ones(2), config, probability=p, examples=7, step=step)
        np.testing.assert_allclose(result, (1 / (7 * p)) ** beta, rtol=1e-12)


def test_run_max_divides_by_the_largest_that_was_ever_drawn() -> None:
    config = {"method": "importance", "beta": 0.5, "normalise": "run_max"}
    past = None
    for p, divisor in [([0.1, 0.4], 0.1), ([0.2, 0.4], 0.1), ([0.05, 0.4], 0.05), ([0.3, 0.2], 0.05)]:
        more: Any = {"probability": np.array(p), "examples": 7, "past": past}
        np.testing.assert_allclose(
            weights(np.ones(2), config, **more), (divisor / np.array(p)) ** 0.5, rtol=1e-12
        )
        past = remember(config, np.ones(2), **more)
    assert dict(past or {}) == {"highest": pytest.approx([1 / (7 * 0.05)])}


def test_the_past_follows_the_exponent_of_the_step_as_in_the_authors_code() -> None:
    # 1 / (N p) = 4 was the greatest; its power by the beta of this step divides, not by that of its own.
    config = {"method": "importance", "beta": 0.0, "beta_steps": 10, "normalise": "run_max"}
    past = remember(config, np.ones(1), probability=np.array([0.25]), examples=1, step=0)
    result = weights(np.ones(1), config, probability=np.array([1.0]), examples=1, step=5, past=past)
    np.testing.assert_allclose(result, [4.0**-0.5])


def test_run_max_is_for_the_server_alone_and_remembers_no_padding() -> None:
    rule = parse({"method": "importance", "normalise": "run_max"})
    assert "remembers" in str(server_only(rule))
    assert server_only(parse({"method": "importance", "normalise": "batch_max"})) is None
    p, mask = np.array([1e-6, 0.5, np.nan, 0.0]), np.array([False, True, True, True])
    past = remember(rule, np.ones(4), probability=p, examples=4, mask=mask)
    np.testing.assert_array_equal(past["highest"], [0.5])
    assert remember({"method": "importance"}, np.ones(4), probability=p, examples=4) == {}


@pytest.mark.parametrize("k", [0.0, 0.5, 0.9])
def test_the_biased_form_keeps_the_batchs_sum_of_weight_times_score(k: float) -> None:
    scores = np.array([0.5, 1.0, 2.0, 4.0, 4.0])
    p = scores / 30
    more: Any = {"probability": p, "examples": 12}
    plain = weights(scores, {"method": "importance"}, **more)
    biased = weights(scores, {"method": "importance", "k": k}, **more)
    assert np.sum(biased * scores) == pytest.approx(np.sum(plain * scores))
    np.testing.assert_allclose(biased / biased[0], (plain / plain[0]) ** k, rtol=1e-12)


def drawn_estimate(config: Any, truth_of: Any) -> float:
    """Where gradient descent on the weighted mean ends for a mean of 100 numbers, drawn in proportion to themselves."""
    generator = np.random.Generator(np.random.Philox(8))
    values = np.arange(1.0, 101.0)
    p, estimate, average = values / values.sum(), 0.0, []
    for step in range(600):
        ids = generator.choice(100, size=64, p=p)
        more: Any = {"step": step, "probability": p[ids], "examples": 100}
        w = weights((estimate - values[ids]) ** 2, config, **more)
        estimate -= 0.05 * float(np.mean(w * (estimate - values[ids])))
        average.append(estimate)
    return abs(float(np.mean(average[200:])) - truth_of(values))


def test_weights_lead_to_the_mean_of_the_dataset_and_without_them_elsewhere() -> None:
    unbiased = drawn_estimate({"method": "importance"}, np.mean)
    biased = drawn_estimate({"method": "importance", "beta": 0.0}, np.mean)
    assert unbiased < 2.0
    assert biased > 15.0, "without weights the mean is that of the draw, 67"
    annealed = drawn_estimate({"method": "importance", "beta": 0.4, "beta_steps": 100}, np.mean)
    assert annealed < 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta_steps": 0}, "beta_steps: expected an integer of at least 1"),
        ({"k": 2}, "importance.k: expected a number from 0 to 1"),
        ({"k": 0.5, "beta": 0.4}, "importance.k: expected it alone"),
        ({"k": 0.5, "normalise": "batch_max"}, "importance.k: expected it alone"),
    ],
)
def test_bad_parameters_are_named(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse({"method": "importance", **change})
