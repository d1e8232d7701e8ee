"""The array functions of whatever library an array belongs to, without importing any of them.

numpy (2 and later) and JAX arrays name their namespace themselves, as the array API standard says. torch
tensors do not; the torch module has the functions that the rules use under the same names, as long as scalars
are mixed with arrays by `where` and operators only.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from steelyard.weigh.rule import Array


def namespace(array: Array) -> Any:
    """The module of array functions for `array`. TypeError: not an array."""
    # Whoever holds a tensor has imported torch; importing it here would cost seconds to those who do not use
    # it.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, getattr(torch, "Tensor", ())):
        return torch
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    raise TypeError(f"expected a numpy array, a torch tensor or a JAX array, got {type(array).__name__}")


def as_float(array: Array) -> Array:
    """`array` without gradient; float64 if it is float64, else float32. No copy where none is needed."""
    xp = namespace(array)
    array = _without_gradient(xp, array)
    if array.dtype == xp.float64 or array.dtype == xp.float32:
        return array
    return cast(array, xp.float32)


def cast(array: Array, dtype: Any) -> Array:
    """`array` as `dtype`, on its device."""
    return array.to(dtype) if hasattr(array, "detach") else array.astype(dtype)


def same_kind(name: str, array: Array, losses: Array) -> Array:
    """`array` without gradient. TypeError: of another library than `losses`. ValueError: of another shape."""
    xp = namespace(losses)
    if namespace(array) is not xp:
        raise TypeError(
            f"expected {name} to be of the kind of the losses ({xp.__name__}), got {type(array).__name__}"
        )
    if array.shape != losses.shape:
        raise ValueError(
            f"expected {name} of shape {tuple(losses.shape)} as the losses, got {tuple(array.shape)}"
        )
    return _without_gradient(xp, array)


def counted(losses: Array, mask: Array | None) -> tuple[Array | None, Array | int]:
    """The mask, checked, and the number n of positions that are not padding (on the device if masked)."""
    if mask is None:
        return None, math.prod(losses.shape)
    xp = namespace(losses)
    mask = same_kind("mask", mask, losses)
    if mask.dtype != getattr(xp, "bool", None) and mask.dtype != getattr(xp, "bool_", None):
        raise ValueError(f"expected a mask of bool, True where a position counts, got {mask.dtype}")
    return mask, xp.sum(xp.where(mask, xp.ones_like(losses), 0.0))


def _without_gradient(xp: Any, array: Array) -> Array:
    if hasattr(array, "detach"):
        return array.detach()
    if xp.__name__ == "jax.numpy":
        return sys.modules["jax"].lax.stop_gradient(array)
    return array
