"""REDUCR."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import Context, parse, remember, server_only, weights

COLUMNS = {
    "group": np.array([0.0, 0.0, 1.0, 1.0]),
    "reference_0": np.array([0.1, 0.2, 1.0, 3.0]),
    "reference_1": np.array([0.4, 2.0, 0.5, 3.9]),
}
LOSSES = np.array([0.5, 1.0, 2.0, 4.0])


def test_the_formula_by_hand() -> None:
    config = {"method": "reducr", "keep": 0.5, "eta": 0.5}
    past = {"total": np.array([3.0, 1.0]), "holdout": np.array([0.7, 0.9])}
    u = np.exp(-0.5 * past["total"])
    u /= u.sum()
    rule: Any = parse(config)
    np.testing.assert_allclose(rule.priorities(Context(past=past)), u, rtol=1e-8)
    excess = np.maximum(LOSSES - np.stack([COLUMNS["reference_0"], COLUMNS["reference_1"]]), 0.0)
    chosen = np.argsort(-(u @ excess))[:2]
    result = weights(LOSSES, config, columns=COLUMNS, past=past)
    np.testing.assert_array_equal(result, np.where(np.isin(np.arange(4), chosen), 2.0, 0.0))
    after = remember(config, LOSSES, columns=COLUMNS, past=past)
    holdout = np.array([0.75, 3.0])
    np.testing.assert_array_equal(after["holdout"], holdout)
    np.testing.assert_allclose(
        after["total"], past["total"] + (excess[:, chosen] - holdout[:, np.newaxis]).sum(axis=1), rtol=1e-12
    )


def test_a_class_that_is_not_in_the_batch_keeps_its_last_loss() -> None:
    config = {"method": "reducr"}
    past = {"total": np.zeros(2), "holdout": np.array([0.7, 0.9])}
    columns = {**COLUMNS, "group": np.array([0.0, 0.0, np.nan, 0.0])}
    after = remember(config, LOSSES, columns=columns, past=past)
    np.testing.assert_allclose(after["holdout"], [5.5 / 3, 0.9])


def test_equal_classes_make_it_rho_loss() -> None:
    generator = np.random.Generator(np.random.Philox(1))
    losses, reference = generator.gamma(2.0, size=(2, 320))
    columns = {"group": np.zeros(320), "reference_0": reference, "reference": reference}
    result = weights(losses, {"method": "reducr", "classes": 1}, columns=columns)
    np.testing.assert_array_equal(result, weights(losses, {"method": "rho_loss"}, columns=columns))


def test_it_serves_the_worst_class(fit: Callable[..., Any]) -> None:
    # Class 1 is rare and in a direction of its own. The expert of each class knows its class and nothing else.
    generator = np.random.Generator(np.random.Philox(3))
    rare = np.arange(4000) % 25 == 0
    inputs = np.where(rare[:, np.newaxis], [0.3, 1.0], [1.0, 0.3]) * generator.normal(size=(4000, 2))
    truth = np.array([[1.0, 0.0], [0.0, 1.0]])
    labels = np.where(rare, inputs @ truth[1], inputs @ truth[0])
    columns = {
        "group": rare.astype(np.float64),
        **{f"reference_{c}": (inputs @ truth[c] - labels) ** 2 for c in range(2)},
    }
    columns["reference"] = np.where(rare, columns["reference_1"], columns["reference_0"])

    def worst(config: Any) -> float:
        found = fit(config, inputs, labels, columns=columns, batch=320, steps=400)
        losses = (inputs @ found - labels) ** 2
        return max(float(losses[rare].mean()), float(losses[~rare].mean()))

    reducr = worst({"method": "reducr", "eta": 1e-3})
    assert reducr < 0.8 * worst({"method": "uniform"})
    # Without its weights of the classes it is rho_loss of both experts at once, and the many win.
    assert reducr < worst({"method": "reducr", "eta": 0.0})


def test_any_numbers_give_finite_weights_and_a_finite_past() -> None:
    losses = np.array([1e30, -3e38, np.nan, np.inf, 3e38, 1.0], np.float32)
    columns = {
        "group": np.array([0, 1, 1, 7, -3, np.nan]),
        "reference_0": np.array([-3e38, 0, 0, 0, np.nan, 3e38]),
        "reference_1": np.array([3e38, 1e30, 0, 0, 0, -1e30]),
    }
    past = None
    for step in range(5):
        result = weights(
            losses, {"method": "reducr", "keep": 0.5, "eta": 1e3}, columns=columns, past=past, step=step
        )
        assert np.isfinite(result).all()
        assert result.sum() == pytest.approx(6)
        assert (result[2:5] == 0).all()
        past = remember({"method": "reducr", "keep": 0.5, "eta": 1e3}, losses, columns=columns, past=past)
        assert all(np.isfinite(one).all() for one in past.values())


def test_what_is_missing_is_named() -> None:
    rule = parse({"method": "reducr", "classes": 3, "group": "label", "reference": "expert"})
    assert rule.columns == ("label", "expert_0", "expert_1", "expert_2")
    assert "'expert_1'" in str(server_only(rule))
    with pytest.raises(ValueError, match="reducr: expected the column 'reference_0', got no columns"):
        weights(LOSSES, {"method": "reducr"})
    bad: Any
    for bad in ({"classes": 0}, {"classes": 1001}, {"keep": 0}, {"eta": -1}):
        with pytest.raises(ValueError, match=f"reducr.{next(iter(bad))}: expected"):
            parse({"method": "reducr", **bad})
