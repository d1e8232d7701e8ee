"""Importance resampling."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import parse, remember, server_only, weights

LOSSES = np.array([0.5, 1.0, 2.0, 4.0])
OPEN = {"ema": np.array([5.0])}
SHUT = {"ema": np.array([0.0])}


def test_the_saved_variance_and_its_ema_are_those_of_the_authors_code(golden: Callable[[str], Any]) -> None:
    expected = golden("katharopoulos/variance reduction of [.5,1,2,4]")
    once = remember({"method": "importance_resample"}, LOSSES)
    assert once["ema"] == pytest.approx([expected["ema_after_one"]], abs=5.1e-7)
    steady = remember({"method": "importance_resample"}, LOSSES, past={"ema": np.array([expected["new_vr"]])})
    assert steady["ema"] == pytest.approx([expected["new_vr"]], abs=5.1e-7)
    g = LOSSES / LOSSES.sum()
    plain = 1 / np.sqrt(1 - np.sum((g - 0.25) ** 2) / np.sum(g**2))
    assert plain == pytest.approx(expected["new_vr"], abs=5.1e-7)


def test_the_gate_opens_above_the_threshold_of_the_authors_code(golden: Callable[[str], Any]) -> None:
    rule: Any = parse({"method": "importance_resample"})
    assert rule.threshold == golden("katharopoulos/default tau_th for presample 3x") == 2.0
    losses = np.r_[np.full(95, 0.01), np.full(5, 10.0)]
    past, opened = None, None
    for step in range(40):
        result = weights(losses, rule, step=step, past=past)
        different = np.unique(result[result > 0]).size > 1 or result[:95].sum() < 50
        if different and opened is None:
            opened = step
        past = remember(rule, losses, past=past, step=step)
    # sqrt(v sum g^2) is 4.4 here: 4.4 (1 - 0.9^t) passes 2 after 6 steps. Equal losses never open it.
    assert opened == 6
    even = None
    for step in range(100):
        even = remember(rule, np.ones(64), past=even, step=step)
    assert even is not None
    assert even["ema"] == pytest.approx([1.0], abs=1e-3)


def test_an_open_gate_gives_sparse_integer_multiples_of_the_undone_probability() -> None:
    losses = np.random.Generator(np.random.Philox(1)).gamma(0.5, size=96)
    result = weights(losses, {"method": "importance_resample"}, past=OPEN, seed=3)
    times = result * losses / losses.sum() * 32  # n/k = 3, and v g = 96 loss / sum
    np.testing.assert_allclose(times, np.round(times), atol=1e-9)
    assert np.round(times).sum() == 32


@pytest.mark.parametrize("past", [OPEN, SHUT])
def test_the_mean_is_unbiased_whether_the_gate_is_open_or_shut(past: Any) -> None:
    generator = np.random.Generator(np.random.Philox(2))
    losses, values = generator.gamma(0.5, size=60), generator.normal(size=60)
    means = [
        np.mean(weights(losses, {"method": "importance_resample"}, past=past, seed=9, step=step) * values)
        for step in range(3000)
    ]
    error = np.std(means) / np.sqrt(len(means))
    assert abs(np.mean(means) - values.mean()) < 4 * error  # one in 16000 by chance


def test_resampling_by_loss_saves_the_variance_that_it_claims() -> None:
    # The mean loss itself: by loss it has no variance at all, evenly it has.
    losses = np.random.Generator(np.random.Philox(2)).gamma(0.5, size=60)

    def spread(past: Any) -> float:
        config = {"method": "importance_resample"}
        return float(
            np.std([np.mean(weights(losses, config, past=past, step=t) * losses) for t in range(300)])
        )

    assert spread(OPEN) < 1e-12
    assert spread(SHUT) > 0.05


def test_the_resample_is_a_function_of_seed_and_step() -> None:
    config = {"method": "importance_resample"}
    first = weights(LOSSES, config, past=OPEN, seed=1, step=2)
    np.testing.assert_array_equal(first, weights(LOSSES, config, past=OPEN, seed=1, step=2))
    others = [weights(LOSSES, config, past=OPEN, seed=1, step=step) for step in range(20)]
    assert any((other != first).any() for other in others)


def test_a_signal_may_be_the_score() -> None:
    config = {"method": "importance_resample", "score": "grad_norm", "presample": 1.0}
    assert "'grad_norm'" in str(server_only(parse(config)))
    norms = np.array([0.0, 0.0, 1.0, np.nan])
    result = weights(LOSSES, config, past=OPEN, columns={"grad_norm": norms})
    # Only the third has a score, so each of three draws takes it: (3 draws) (4/3) / (3 * 1).
    np.testing.assert_allclose(result, [0, 0, 4 / 3, 0])


@pytest.mark.parametrize("past", [OPEN, SHUT])
def test_any_losses_give_finite_weights(past: Any) -> None:
    config = {"method": "importance_resample", "presample": 1.0}
    for losses in (
        [0.0, 0.0, 0.0],
        [-1.0, -2.0, -1e30],
        [1e30, 3e38, 1.0],
        [np.nan, 1e30, np.inf],
        [np.nan] * 3,
    ):
        result = weights(np.array(losses, np.float32), config, past=past)
        assert np.isfinite(result).all()
        assert (result >= 0).all()
        assert (result[~np.isfinite(losses)] == 0).all()
        ema = remember(config, np.array(losses, np.float32), past=past)["ema"]
        assert np.isfinite(ema).all()


@pytest.mark.parametrize("change", [{"presample": 0.5}, {"tau_th": -1}, {"score": 3}])
def test_bad_parameters_are_named(change: Any) -> None:
    with pytest.raises(ValueError, match=f"importance_resample.{next(iter(change))}: expected"):
        parse({"method": "importance_resample", **change})
