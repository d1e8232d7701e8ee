"""Uniform."""

from collections.abc import Callable
from typing import Any

import numpy as np

from steelyard.weigh import parse, weights


def test_every_example_weighs_one_whatever_its_loss_is() -> None:
    np.testing.assert_array_equal(
        weights(np.array([0.0, 1e30, -3.0, np.nan]), {"method": "uniform"}), np.ones(4)
    )


def test_it_does_not_fall_into_the_trap_of_the_authors_readme(golden: Callable[[str], Any]) -> None:
    # There "uniform" sends the normalised losses through the softmax.
    trap = np.array(golden("seed/README-uniform-branch r=1 (trap)")["w_sum1"])
    ours = weights(np.array([0.5, 1.0, 2.0, 4.0]), {"method": "uniform"}) / 4
    np.testing.assert_array_equal(ours, np.full(4, 0.25))
    assert abs(ours - trap).max() > 0.3


def test_it_trains_on_the_plain_mean(fit: Callable[..., Any]) -> None:
    generator = np.random.Generator(np.random.Philox(1))
    inputs, truth = generator.normal(size=(500, 3)), np.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(fit({"method": "uniform"}, inputs, inputs @ truth), truth, atol=1e-6)


def test_it_is_known_before_any_loss_is() -> None:
    assert parse({"method": "uniform"}).reads == "nothing"
