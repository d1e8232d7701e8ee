"""Self-paced learning."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, weights

LOSSES = np.array([0.5, 1.0, 2.0, 4.0])


def test_weights_are_those_of_the_closed_forms(golden: Callable[[str], Any]) -> None:
    for form, name in (("hard", "spl/hard lambda=2.5"), ("linear", "spl/linear lambda=2.5 (from memory)")):
        result = weights(LOSSES, {"method": "self_paced", "form": form, "threshold": 2.5})
        np.testing.assert_allclose(result, golden(name), rtol=0, atol=5.1e-7)


@pytest.mark.parametrize("form", ["hard", "linear"])
def test_no_other_weights_have_a_lower_objective(form: str) -> None:
    threshold = 1.7

    def objective(v: Any) -> float:
        penalty = -np.sum(v) if form == "hard" else np.sum(v * v / 2 - v)
        return float(np.sum(v * LOSSES) + threshold * penalty)

    best = objective(weights(LOSSES, {"method": "self_paced", "form": form, "threshold": threshold}))
    for other in np.random.Generator(np.random.Philox(2)).random((3000, 4)):
        assert objective(other) > best


def test_the_threshold_grows_by_the_stated_schedule() -> None:
    rule: Any = parse({"method": "self_paced", "threshold": 0.6, "growth": 2.0, "every": 10})
    assert [rule.threshold_at(step) for step in (0, 9, 10, 25, 10**6, 2**53)] == [
        0.6,
        0.6,
        1.2,
        2.4,
        1e30,
        1e30,
    ]
    chosen = [int(rule_weights(rule, step).sum()) for step in (0, 10, 20, 30)]
    assert chosen == [1, 2, 3, 4]
    still: Any = parse({"method": "self_paced", "threshold": 0.6, "growth": 1.0})
    assert still.threshold_at(10**6) == 0.6


def rule_weights(rule: Any, step: int) -> Any:
    return weights(LOSSES, rule, step=step)


@pytest.mark.parametrize("form", ["hard", "linear"])
def test_outliers_never_become_easy_enough(fit: Callable[..., Any], form: str) -> None:
    generator = np.random.Generator(np.random.Philox(7))
    inputs, truth = generator.normal(size=(1000, 4)), np.array([1.0, -0.5, 0.3, 0.8])
    labels = np.where(np.arange(1000) % 10 == 0, 10.0, inputs @ truth)

    def error(config: Any) -> float:
        return float(np.sum((fit(config, inputs, labels) - truth) ** 2))

    paced = {"method": "self_paced", "form": form, "threshold": 4.0, "growth": 1.2, "every": 100}
    uniform = error({"method": "uniform"})
    assert error(paced) < 0.01 * uniform
    # Its opposite, the highest losses first, is led by them.
    assert error({"method": "top_k", "fraction": 0.25}) > uniform


@pytest.mark.parametrize("form", ["hard", "linear"])
def test_any_losses_weigh_between_0_and_1(form: str) -> None:
    losses = np.array([-3e38, -1.0, 0.0, 1e30, 3e38, np.nan, np.inf, -np.inf], np.float32)
    result = weights(losses, {"method": "self_paced", "form": form, "threshold": 1e-6})
    np.testing.assert_array_equal(result, [1, 1, 1, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("change", [{"threshold": 0}, {"growth": 0.5}, {"every": 0}, {"form": "soft"}])
def test_bad_parameters_are_named(change: Any) -> None:
    with pytest.raises(ValueError, match=f"self_paced.{next(iter(change))}: expected"):
        parse({"method": "self_paced", **change})
