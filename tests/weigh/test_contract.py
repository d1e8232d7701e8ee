"""The contract of a weigh rule, for every rule that reads losses: what the weights are for any losses at all."""

import random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.weigh import METHODS, weights

SEED = ["linupper", "quadratic", "extremes", "upper"]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Losses of either precision, any value that a float can hold, and a padding mask."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    size = draw(st.integers(1, 40))
    values = st.floats(width=32 if dtype is np.float32 else 64) | st.sampled_from(
        [0.0, 1.0, 1.0 + 2**-20, float("nan"), float("inf")]
    )
    losses = np.array(draw(st.lists(values, min_size=size, max_size=size)), dtype=dtype)
    mask = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    return losses, mask


@pytest.mark.parametrize("method", SEED)
@given(
    batch=batches(),
    r=st.sampled_from([1e-6, 0.05, 0.4, 1.0, 1e12]),
    step=st.integers(0, 1),
    clip=st.sampled_from([None, 0.0, 0.1, 0.49]),
)
def test_weights_are_finite_not_negative_and_sum_to_n(
    method: str, batch: tuple[Floats, npt.NDArray[np.bool_]], r: float, step: int, clip: float | None
) -> None:
    losses, mask = batch
    config = {"method": method, "r": r, "warmup_steps": 1, "clip": clip}
    result = weights(losses, config, step=step, mask=mask)
    counts = mask & np.isfinite(losses)
    assert result.dtype == losses.dtype
    assert np.isfinite(result).all()
    assert (result >= 0).all()
    assert (result[~counts] == 0).all()
    expected = mask.sum() if counts.any() else 0
    assert result.sum(dtype=np.float64) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", [*SEED, "uniform"])
@given(
    losses=st.lists(st.floats(0, 20), min_size=1, max_size=30),
    padding=st.lists(st.floats() | st.just(1e30), min_size=1, max_size=30),
    order=st.randoms(use_true_random=False),
)
def test_padding_changes_nothing(
    method: str, losses: list[float], padding: list[float], order: random.Random
) -> None:
    together = [(one, True) for one in losses] + [(one, False) for one in padding]
    order.shuffle(together)
    gathered = np.array([one for one, _ in together])
    mask = np.array([real for _, real in together])
    padded = weights(gathered, {"method": method}, mask=mask)
    bare = weights(gathered[mask], {"method": method})
    np.testing.assert_allclose(padded[mask], bare, rtol=1e-12)
    assert (padded[~mask] == 0).all()


@pytest.mark.parametrize("method", SEED)
def test_slices_of_three_ranks_gathered_and_padded_weigh_as_the_batch(method: str) -> None:
    losses = np.array([0.5, 1.0, 2.0, 4.0, 3.0], dtype=np.float32)
    gathered = np.full((3, 2), 99.0, dtype=np.float32)
    gathered.flat[[0, 1, 2, 3, 4]] = losses
    mask = np.array([[True, True], [True, True], [True, False]])
    result = weights(gathered, {"method": method, "r": 0.4}, mask=mask)
    assert result.shape == (3, 2)
    np.testing.assert_array_equal(result[mask], weights(losses, {"method": method, "r": 0.4}))


@pytest.mark.parametrize("method", SEED)
@given(
    losses=st.lists(st.integers(-64, 64), min_size=2, max_size=20),
    scale=st.sampled_from([2.0**-10, 0.1, 3.0, 2.0**20]),
    shift=st.sampled_from([-7.5, 0.0, 100.0]),
)
def test_weights_do_not_change_when_losses_are_shifted_or_scaled(
    method: str, losses: list[int], scale: float, shift: float
) -> None:
    plain = np.array(losses, dtype=np.float64)
    rescaled = weights(plain * scale + shift, {"method": method, "r": 0.4})
    np.testing.assert_allclose(rescaled, weights(plain, {"method": method, "r": 0.4}), rtol=1e-8)


@pytest.mark.parametrize("method", SEED)
def test_a_nonfinite_loss_weighs_nothing_and_still_counts(method: str) -> None:
    bare = weights(np.array([0.5, 1.0, 2.0, 4.0]), {"method": method})
    result = weights(np.array([0.5, np.nan, 1.0, 2.0, np.inf, -np.inf, 4.0, np.nan]), {"method": method})
    np.testing.assert_allclose(result[[0, 2, 3, 6]], 2 * bare, rtol=1e-12)
    np.testing.assert_array_equal(result[[1, 4, 5, 7]], np.zeros(4))


@pytest.mark.parametrize("method", SEED)
@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_a_batch_without_a_finite_loss_weighs_nothing(method: str, warmup_steps: int) -> None:
    losses = np.array([np.nan, np.inf, -np.inf])
    config = {"method": method, "warmup_steps": warmup_steps}
    np.testing.assert_array_equal(weights(losses, config), np.zeros(3))
    mask = np.zeros(3, dtype=np.bool_)
    np.testing.assert_array_equal(weights(np.ones(3), config, mask=mask), np.zeros(3))


@pytest.mark.parametrize("method", [*SEED, "uniform"])
def test_an_empty_batch_has_no_weights(method: str) -> None:
    assert weights(np.empty(0, dtype=np.float32), {"method": method}).shape == (0,)


@pytest.mark.parametrize("outlier", [30.0, 1e30, 3e38])
def test_an_outlier_takes_the_range_as_published_and_stays_finite(outlier: float) -> None:
    losses = np.array([2.0, 2.5, 3.0, 3.5, outlier], dtype=np.float32)
    result = weights(losses, {"method": "linupper", "r": 0.4})
    assert np.isfinite(result).all()
    assert result.argmax() == 4
    if outlier == 30.0:
        np.testing.assert_allclose(result / 5, [0.060, 0.065, 0.071, 0.078, 0.726], atol=5e-4)


def test_clipped_losses_are_weighed_as_those_next_to_them() -> None:
    losses = np.array([1e30, 2.0, np.nan, 2.5, 3.0, 3.5, -1e30], dtype=np.float32)
    result = weights(losses, {"method": "upper", "clip": 0.2})
    inner = np.array([3.5, 2.0, np.nan, 2.5, 3.0, 3.5, 2.0], dtype=np.float32)
    np.testing.assert_array_equal(result, weights(inner, {"method": "upper"}))
    nothing = weights(losses, {"method": "upper", "clip": 0.0})
    np.testing.assert_array_equal(nothing, weights(losses, {"method": "upper"}))


@pytest.mark.parametrize(
    "losses", [[-3.4e38, 0.0, 3.4e38], [2e38, 2.6e38, 3.2e38], [-3.2e38, -2.6e38, -2e38]]
)
def test_losses_as_large_as_a_float_holds_weigh_as_any_other(losses: list[float]) -> None:
    # The NaN is replaced by something before the ends are sought: it must not become one.
    result = weights(np.array([*losses, np.nan], dtype=np.float32), {"method": "upper"})
    expected = weights(np.array([-1.0, 0.0, 1.0, np.nan]), {"method": "upper"})
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_nearly_equal_losses_part_as_published_unless_the_least_range_is_raised() -> None:
    losses = np.array([2.7, 2.70001, 2.7, 2.7])
    published = weights(losses, {"method": "linupper", "r": 0.4})
    np.testing.assert_allclose(published / 4, [0.066, 0.802, 0.066, 0.066], atol=5e-4)
    calm = weights(losses, {"method": "linupper", "r": 0.4, "min_range": 1.0})
    np.testing.assert_allclose(calm, np.ones(4), atol=1e-4)


@pytest.mark.parametrize("method", ["linupper", "extremes", "upper"])
def test_weights_part_by_no_more_than_stated(method: str) -> None:
    losses = np.linspace(0.0, 1.0, 101)
    for r, delta in [(1.0, 1.0), (0.4, 1.0), (0.5, 2.0)]:
        result = weights(losses, {"method": method, "r": r, "delta": delta})
        assert result.max() / result.min() == pytest.approx(np.exp(delta / r), rel=1e-9)


def test_delta_does_not_matter_to_quadratic() -> None:
    losses = np.array([0.5, 1.0, 2.0, 4.0])
    one, two = (weights(losses, {"method": "quadratic", "delta": delta}) for delta in (1.0, 2.0))
    np.testing.assert_allclose(one, two, rtol=1e-12)


def test_weights_are_one_during_the_warm_up() -> None:
    losses = np.array([0.5, 1.0, 4.0], dtype=np.float32)
    config = {"method": "linupper", "warmup_steps": 3}
    np.testing.assert_array_equal(weights(losses, config, step=2), np.ones(3))
    np.testing.assert_array_equal(
        weights(losses, config, step=3), weights(losses, {"method": "linupper"}, step=0)
    )


def test_the_schedule_rules_from_each_of_its_steps_on() -> None:
    losses = np.array([0.5, 1.0, 4.0])
    config = {"method": "linupper", "r": 100.0, "r_schedule": [[10, 1.0], [20, 0.4]]}
    for step, r in [(0, 100.0), (9, 100.0), (10, 1.0), (19, 1.0), (20, 0.4), (10**6, 0.4)]:
        expected = weights(losses, {"method": "linupper", "r": r})
        np.testing.assert_array_equal(weights(losses, config, step=step), expected)


def test_uniform_weighs_one_whatever_the_losses_are() -> None:
    losses = np.array([1.0, np.nan, np.inf, -3.0], dtype=np.float32)
    result = weights(losses, {"method": "uniform"})
    np.testing.assert_array_equal(result, np.ones(4, dtype=np.float32))
    assert result.dtype == np.float32


def test_rules_that_do_not_read_losses_are_known_at_the_draw() -> None:
    at_the_draw = {name: rule.reads for name, rule in METHODS.items() if rule.reads != "losses"}
    assert at_the_draw == {
        "uniform": "nothing",
        "importance": "probability",
        "infobatch_rescale": "draw",
        "linear_curriculum": "draw",
    }
