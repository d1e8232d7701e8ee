"""KL-DRO."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, weights

LOSSES = np.array([0.5, 1.0, 2.0, 4.0])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_weights_are_those_of_the_authors_code(golden: Callable[[str], Any], temperature: float) -> None:
    expected = golden(f"kl_dro/lambda={temperature}")
    result = weights(LOSSES, {"method": "kl_dro", "temperature": temperature})
    np.testing.assert_allclose(result / 4, expected["w_sum1"], rtol=0, atol=5.1e-7)
    assert np.mean(result * LOSSES) == pytest.approx(expected["loss"], abs=5.1e-7)


def test_the_formula_in_plain_numpy() -> None:
    generator = np.random.Generator(np.random.Philox(3))
    losses = generator.gamma(2.0, size=100)
    mass = np.exp(losses / 0.7)
    result = weights(losses, {"method": "kl_dro", "temperature": 0.7})
    np.testing.assert_allclose(result, 100 * mass / mass.sum(), rtol=1e-12)


def test_no_other_weights_of_the_batch_have_a_greater_objective() -> None:
    def objective(w: Any, temperature: float) -> float:
        return float(np.sum(w * LOSSES) - temperature * np.sum(w * np.log(4 * w)))

    generator = np.random.Generator(np.random.Philox(4))
    for temperature in (0.3, 1.0, 5.0):
        best = objective(weights(LOSSES, {"method": "kl_dro", "temperature": temperature}) / 4, temperature)
        others = generator.dirichlet(np.ones(4), size=2000)
        assert all(objective(other, temperature) < best for other in others)


def test_it_follows_the_tail(fit: Callable[..., Any]) -> None:
    # One in ten examples follows another law than the rest, so one model cannot please both.
    generator = np.random.Generator(np.random.Philox(5))
    inputs, rare = generator.normal(size=(1000, 2)), np.arange(1000) % 10 == 0
    labels = np.where(rare, inputs[:, 1], inputs[:, 0])

    def tail_and_mean(config: Any) -> tuple[float, float]:
        losses = np.sort((inputs @ fit(config, inputs, labels) - labels) ** 2)
        return float(losses[-20:].mean()), float(losses.mean())

    tail, mean = tail_and_mean({"method": "kl_dro", "temperature": 3.0})
    uniform_tail, uniform_mean = tail_and_mean({"method": "uniform"})
    assert tail < 0.7 * uniform_tail
    assert mean > 1.2 * uniform_mean, "the tail is not bought for nothing"
    assert tail_and_mean({"method": "kl_dro", "temperature": 1e6})[0] == pytest.approx(uniform_tail, rel=1e-4)


def test_it_is_fastest_on_clean_labels_and_ruined_by_outliers(regression: Callable[..., float]) -> None:
    assert regression({"method": "kl_dro"}) < 0.1 * regression({"method": "uniform"})
    assert regression({"method": "kl_dro"}, 0.05) > 5 * regression({"method": "uniform"}, 0.05)


@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_overflows(temperature: float, dtype: Any) -> None:
    top = float(np.finfo(dtype).max)
    for losses in ([1e30, 0.0, -1e30, np.nan], [top, -top, 0.0, 1.0], [-top, -top, -top, np.nan]):
        result = weights(np.array(losses, dtype), {"method": "kl_dro", "temperature": temperature})
        assert np.isfinite(result).all()
        assert result.sum() == pytest.approx(4, rel=1e-6)
    result = weights(np.array([np.nan, np.inf]), {"method": "kl_dro"})
    np.testing.assert_array_equal(result, [0.0, 0.0])


def test_a_temperature_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="kl_dro.temperature: expected a number from 1e-06"):
        parse({"method": "kl_dro", "temperature": 0})
