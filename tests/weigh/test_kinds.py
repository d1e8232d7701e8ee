"""The same rule for numpy, torch and JAX arrays, on whatever device they are, without waiting for it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import METHODS, server_only, weights

ALL = [name for name, rule in METHODS.items() if server_only(rule()) is None]
CONFIGS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in ALL},
    "linupper, clipped": {"method": "linupper", "clip": 0.1},
    "importance, batch_max": {"method": "importance", "normalise": "batch_max"},
    "importance, k": {"method": "importance", "k": 0.5},
    "top_k, a fraction": {"method": "top_k", "fraction": 0.3},
    "self_paced, linear": {"method": "self_paced", "form": "linear"},
}
"""What runs in the trainer, by name: each rule and its other forms."""
LOSSES = np.random.Generator(np.random.Philox(7)).gamma(2.0, size=48)
LOSSES[5] = np.nan
MASK = np.arange(48) < 45
PROBABILITY = np.linspace(0.01, 0.5, 48)


def test_the_rules_of_the_trainer_are_these() -> None:
    assert set(ALL) == {
        *("uniform", "linupper", "quadratic", "extremes", "upper", "kl_dro", "loss_rank_slice"),
        *("importance", "infobatch_rescale", "focal", "self_paced", "top_k"),
    }


def weigh(method: str, convert: Any, dtype: Any, **changes: Any) -> Any:
    keywords = {
        "step": 3,
        "probability": convert(PROBABILITY),
        "examples": 48,
        "mask": convert(MASK),
        **changes,
    }
    return weights(convert(LOSSES.astype(dtype)), CONFIGS[method], **keywords)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture
def jax() -> Iterator[Any]:
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield jax
    jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", CONFIGS)
def test_torch_gives_the_weights_of_numpy(torch: Any, method: str, dtype: Any) -> None:
    result = weigh(method, torch.from_numpy, dtype)
    expected = weigh(method, np.asarray, dtype)
    assert isinstance(result, torch.Tensor)
    assert str(result.dtype) == f"torch.{np.dtype(dtype).name}"
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-6 * max(1.0, expected.max()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", CONFIGS)
def test_jax_gives_the_weights_of_numpy_also_when_compiled(jax: Any, method: str, dtype: Any) -> None:
    expected = weigh(method, np.asarray, dtype)
    losses, mask = jax.numpy.asarray(LOSSES.astype(dtype)), jax.numpy.asarray(MASK)
    probability = jax.numpy.asarray(PROBABILITY)

    # A tracer has no value, so compiling proves that no rule asks for one.
    def compiled(losses: Any, mask: Any, probability: Any) -> Any:
        return weights(losses, CONFIGS[method], step=3, mask=mask, probability=probability, examples=48)

    for result in (compiled(losses, mask, probability), jax.jit(compiled)(losses, mask, probability)):
        assert isinstance(result, jax.Array)
        assert result.dtype == np.dtype(dtype)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6 * max(1.0, expected.max()))


def test_no_gradient_passes_through_jax_weights(jax: Any) -> None:
    def objective(losses: Any) -> Any:
        return jax.numpy.mean(weights(losses, {"method": "upper"}) * losses)

    losses = jax.numpy.asarray([0.5, 1.0, 2.0, 4.0])
    np.testing.assert_allclose(jax.grad(objective)(losses), weights(losses, {"method": "upper"}) / 4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", CONFIGS)
def test_no_rule_asks_a_torch_device_for_a_value(torch: Any, method: str, masked: bool) -> None:
    # A tensor on the meta device has no values: .item(), bool() or a copy to the host would raise.
    meta = {"device": "meta"}
    result = weights(
        torch.empty((2, 24), **meta),
        CONFIGS[method],
        probability=torch.empty((2, 24), dtype=torch.float64, **meta),
        examples=48,
        mask=torch.empty((2, 24), dtype=torch.bool, **meta) if masked else None,
    )
    assert (result.device.type, result.dtype, tuple(result.shape)) == ("meta", torch.float32, (2, 24))


@pytest.mark.parametrize("method", CONFIGS)
def test_a_cuda_device_is_never_waited_for(torch: Any, method: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    arrays = [torch.from_numpy(one).cuda() for one in (LOSSES, PROBABILITY, MASK)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = weights(arrays[0], CONFIGS[method], probability=arrays[1], examples=48, mask=arrays[2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = weigh(method, np.asarray, np.float64)
    np.testing.assert_allclose(result.cpu().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("method", CONFIGS)
def test_no_gradient_passes_and_the_losses_stay_as_they_were(torch: Any, method: str) -> None:
    losses = torch.tensor([0.5, 1.0, 2.0, 4.0], requires_grad=True)
    p = torch.full((4,), 0.25, requires_grad=True)
    result = weights(losses, CONFIGS[method], probability=p, examples=4)
    assert not result.requires_grad
    (result * losses).mean().backward()
    np.testing.assert_allclose(losses.grad.numpy(), result.numpy() / 4, rtol=1e-6)
    np.testing.assert_array_equal(losses.detach().numpy(), [0.5, 1.0, 2.0, 4.0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int64"])
def test_other_types_are_weighed_in_float32(torch: Any, dtype: str) -> None:
    losses = torch.tensor([1, 2, 3, 8]).to(getattr(torch, dtype))
    result = weights(losses, {"method": "linupper"})
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result, weights(np.array([1.0, 2, 3, 8]), {"method": "linupper"}), atol=1e-6)
    if dtype != "bfloat16":
        assert weights(losses.numpy(), {"method": "linupper"}).dtype == np.float32


def test_numpy_losses_stay_as_they_were() -> None:
    losses = np.array([1.0, 2.0, 8.0])
    losses.flags.writeable = False
    for method in ALL:
        weights(losses, {"method": method}, probability=losses / 16, examples=3)
    np.testing.assert_array_equal(losses, [1.0, 2.0, 8.0])


def test_what_is_no_array_is_named() -> None:
    losses: Any = [1.0, 2.0]
    with pytest.raises(TypeError, match="expected a numpy array, a torch tensor or a JAX array, got list"):
        weights(losses, {"method": "linupper"})


def test_arrays_of_two_kinds_do_not_mix(torch: Any) -> None:
    mask: Any = np.ones(2, dtype=np.bool_)
    with pytest.raises(TypeError, match=r"mask to be of the kind of the losses \(torch\), got ndarray"):
        weights(torch.ones(2), {"method": "linupper"}, mask=mask)


@pytest.mark.parametrize("method", CONFIGS)
def test_a_mask_must_be_bool_and_of_the_losses_shape(method: str) -> None:
    losses, p = np.ones(3), np.full(3, 0.5)
    with pytest.raises(ValueError, match=r"expected mask of shape \(3,\) as the losses, got \(2,\)"):
        weights(losses, CONFIGS[method], mask=np.ones(2, dtype=np.bool_), probability=p, examples=4)
    with pytest.raises(ValueError, match="expected a mask of bool, .* got int64"):
        weights(losses, CONFIGS[method], mask=np.ones(3, dtype=np.int64), probability=p, examples=4)
