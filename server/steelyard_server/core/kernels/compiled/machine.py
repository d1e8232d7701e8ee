"""How kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit, types

F = TypeVar("F", bound=Callable[..., Any])

# No fastmath: sums and products must round as NumPy's do. nogil: other threads go on meanwhile.
_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": False}

WORDS = types.Array(types.uint64, 1, "C")
READ_WORDS = types.Array(types.uint64, 1, "C", readonly=True)
READ_LEAVES = types.Array(types.uint32, 1, "C", readonly=True)
LEAVES = types.Array(types.uint32, 1, "C")
IDS = types.Array(types.int64, 1, "C")
READ_IDS = types.Array(types.int64, 1, "C", readonly=True)
READ_SCORES = types.Array(types.float32, 1, "C", readonly=True)
WORD = types.uint64
COUNT = types.int64
FLOAT = types.float64
NOTHING = types.void


def kernel(returns: Any, *arguments: Any) -> Callable[[F], F]:
    """Compiles a function for these types and no others: a call with another type is a TypeError, never a compile."""

    def compile_it(function: F) -> F:
        return cast("F", njit(returns(*arguments), **_OPTIONS)(function))

    return compile_it


def inlined(function: F) -> F:
    """A piece of kernels, compiled with each of them."""
    return cast("F", njit(nogil=True, error_model="numpy")(function))
