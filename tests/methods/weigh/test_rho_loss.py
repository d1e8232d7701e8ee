"""RHO-LOSS."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, server_only, weights

LOSSES = np.array([0.5, 1.0, 2.0, 4.0])


def test_the_chosen_are_those_of_the_authors_code(golden: Callable[[str], Any]) -> None:
    expected = golden("rho_loss/IL .1,.9,1.5,3.9")
    reference = np.array([0.1, 0.9, 1.5, 3.9])
    np.testing.assert_allclose(LOSSES - reference, expected["reducible"], rtol=0, atol=5.1e-7)
    result = weights(LOSSES, {"method": "rho_loss", "keep": 0.5}, columns={"reference": reference})
    np.testing.assert_array_equal(np.flatnonzero(result), sorted(expected["top2"]))
    np.testing.assert_array_equal(result, [2, 0, 2, 0])
    best = weights(LOSSES, {"method": "rho_loss", "keep": 0.25}, columns={"reference": reference})
    assert np.argmax(best) == expected["top2"][0]


def test_a_tenth_of_the_candidates_is_kept() -> None:
    generator = np.random.Generator(np.random.Philox(1))
    losses, reference = generator.gamma(2.0, size=(2, 320))
    result = weights(losses, {"method": "rho_loss"}, columns={"reference": reference})
    chosen = np.argsort(reference - losses)[:32]
    expected = np.zeros(320)
    expected[chosen] = 10.0
    np.testing.assert_array_equal(result, expected)


def test_it_learns_what_is_learnable_where_top_k_learns_noise(fit: Callable[..., Any]) -> None:
    # 15 % of the labels are flipped: the held-out model is as wrong about them as the one that is trained.
    generator = np.random.Generator(np.random.Philox(2))
    inputs, truth = generator.normal(size=(3000, 4)), np.array([2.0, -2.0, 1.0, 0.5])
    flipped = generator.random(3000) < 0.15
    labels = np.where(flipped, -1.0, 1.0) * np.sign(inputs @ truth)
    columns = {"reference": np.logaddexp(0.0, -labels * (inputs @ truth))}
    hardest, rho = {"method": "top_k", "fraction": 0.1}, {"method": "rho_loss"}

    def picked_noise(config: Any) -> float:
        losses = np.logaddexp(0.0, -labels * (inputs @ truth) * 0.3)
        return float(flipped[weights(losses, config, columns=columns) > 0].mean())

    assert picked_noise(hardest) > 0.95
    assert picked_noise(rho) < 0.01

    def wrong(config: Any) -> float:
        found = fit(config, inputs, labels, columns=columns, batch=320, logistic=True, rate=0.3, steps=100)
        return float(np.mean(np.sign(inputs @ found) != np.sign(inputs @ truth)))

    assert wrong(rho) < 0.03
    assert wrong(hardest) > 0.2


def test_what_has_no_reference_or_no_loss_is_never_chosen() -> None:
    losses = np.array([9.0, np.nan, 2.0, 1.0], np.float32)
    columns = {"irreducible": np.array([np.nan, 0.0, 0.5, 0.0], np.float32)}
    config = {"method": "rho_loss", "reference": "irreducible", "keep": 1.0}
    np.testing.assert_array_equal(weights(losses, config, columns=columns), [0, 0, 2, 2])
    nothing = {"irreducible": np.full(4, np.nan)}
    np.testing.assert_array_equal(weights(losses, config, columns=nothing), np.zeros(4))


def test_losses_beyond_all_measure_are_ranked() -> None:
    losses = np.array([1e30, 3e38, -3e38, 1.0], np.float32)
    columns = {"reference": np.array([-3e38, 3e38, 3e38, 0.0], np.float32)}
    result = weights(losses, {"method": "rho_loss"}, columns=columns)
    np.testing.assert_array_equal(result, [4, 0, 0, 0])


def test_what_is_missing_is_named() -> None:
    assert "'reference'" in str(server_only(parse({"method": "rho_loss"})))
    with pytest.raises(ValueError, match="rho_loss: expected the column 'reference', got 'other'"):
        weights(LOSSES, {"method": "rho_loss"}, columns={"other": LOSSES})
    with pytest.raises(ValueError, match=r"expected 'reference' of shape \(4,\) as the losses, got \(3,\)"):
        weights(LOSSES, {"method": "rho_loss"}, columns={"reference": np.ones(3)})
    with pytest.raises(ValueError, match="rho_loss.keep: expected"):
        parse({"method": "rho_loss", "keep": 0})
    with pytest.raises(ValueError, match=r"rho_loss.reference: expected a name, got 3 \(int\)"):
        parse({"method": "rho_loss", "reference": 3})
