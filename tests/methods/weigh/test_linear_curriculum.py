"""Linear curriculum."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, server_only, weights

EASE = np.array([1.0, 1 / 2, 1 - 1 / 10])
"""Of a relevant document at rank 1, one at rank 2, and one at rank 10 that is not relevant."""
CONFIG = {"method": "linear_curriculum", "epoch_steps": 5}


@pytest.mark.parametrize("epoch", [0, 10])
def test_weights_are_those_of_the_authors_code(golden: Callable[[str], Any], epoch: int) -> None:
    expected = golden(f"curricula/pointwise recip ranks 1,2(pos),10(neg) epoch {epoch} m=20")
    for step in (5 * epoch, 5 * epoch + 4):
        result = weights(np.zeros(3), CONFIG, columns={"ease": EASE}, step=step)
        np.testing.assert_allclose(result, expected, rtol=0, atol=5.1e-7)


def test_from_the_last_epoch_on_all_weigh_one(golden: Callable[[str], Any]) -> None:
    assert (
        golden("curricula/pointwise recip ranks 1,2(pos),10(neg) epoch 20 m=20") == "all 1 (curriculum off)"
    )
    for step in (100, 10**9):
        np.testing.assert_array_equal(
            weights(np.zeros(3), CONFIG, columns={"ease": EASE}, step=step), np.ones(3)
        )


def test_an_epoch_is_that_of_the_dataset_unless_it_is_said() -> None:
    config = {"method": "linear_curriculum", "end_epoch": 2}
    for step, t in [(0, 0.0), (2, 0.0), (3, 0.5), (5, 0.5), (6, 1.0)]:
        result = weights(np.zeros(3), config, columns={"ease": EASE}, step=step, examples=8)
        np.testing.assert_allclose(result, EASE * (1 - t) + t)
    with pytest.raises(ValueError, match="expected the number of examples, .* or epoch_steps or end_step"):
        weights(np.zeros(3), config, columns={"ease": EASE})


def test_an_end_step_makes_it_rise_with_every_step() -> None:
    config = {"method": "linear_curriculum", "end_step": 8}
    for step in range(10):
        t = min(step / 8, 1.0)
        result = weights(np.zeros(3), config, columns={"ease": EASE}, step=step)
        np.testing.assert_allclose(result, EASE * (1 - t) + t)


def test_the_authors_mean_of_the_batch_is_an_option() -> None:
    config = {**CONFIG, "mean": "batch"}
    mask = np.array([True, True, False])
    result = weights(np.zeros(3), config, columns={"ease": EASE}, mask=mask)
    np.testing.assert_allclose(result, [0.75, 0.75, 0.0])


def test_anti_is_hard_first() -> None:
    result = weights(np.zeros(3), {**CONFIG, "anti": True}, columns={"ease": EASE})
    np.testing.assert_allclose(result, 1 - EASE)


def test_what_is_not_known_counts_fully_and_what_lies_outside_as_the_nearer_end() -> None:
    ease = np.array([np.nan, -1e30, 1e30, np.inf])
    np.testing.assert_array_equal(weights(np.zeros(4), CONFIG, columns={"ease": ease}), [1, 0, 1, 1])


def test_easy_examples_first_lead_to_the_truth_sooner_than_hard_ones_first(fit: Callable[..., Any]) -> None:
    # The hard half has labels of noise around the truth: harmless in the end, misleading at first.
    generator = np.random.Generator(np.random.Philox(4))
    inputs, truth = generator.normal(size=(2000, 4)), np.array([1.0, -1.0, 0.5, 0.2])
    hard = np.arange(2000) % 2 == 0
    labels = inputs @ truth + np.where(hard, 5.0 * generator.normal(size=2000), 0.0)

    def error(config: Any) -> float:
        found = fit(config, inputs, labels, columns={"ease": np.where(hard, 0.1, 1.0)}, steps=120)
        return float(np.sum((found - truth) ** 2))

    config = {"method": "linear_curriculum", "end_step": 1000}
    easy_first = error(config)
    assert easy_first < 0.3 * error({"method": "uniform"})
    assert error({**config, "anti": True}) > 3 * easy_first
    # One weight for all of a batch is no curriculum of examples: it only makes the steps smaller.
    assert error({**config, "mean": "batch"}) > 2 * easy_first


def test_no_loss_is_read() -> None:
    rule = parse(CONFIG)
    assert rule.reads == "draw"
    assert "'ease'" in str(server_only(rule))
    losses = np.array([np.nan, np.inf, 1e30], np.float32)
    result = weights(losses, rule, columns={"ease": EASE})
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, EASE, rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [{"end_epoch": -1}, {"epoch_steps": 0}, {"mean": "sum"}, {"anti": 1}, {"ease": ""}, {"end_step": -1}],
)
def test_bad_parameters_are_named(change: Any) -> None:
    with pytest.raises(ValueError, match=f"linear_curriculum.{next(iter(change))}: expected"):
        parse({"method": "linear_curriculum", **change})
