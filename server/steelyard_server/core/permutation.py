"""A keyed permutation of range(size) that is computed, not stored: O(1) memory for each index asked for.

A Feistel network on pairs (left, right), left below `rows` and right below `columns`, where rows * columns
is the smallest near-square that holds `size`. Each half-round adds to one half, modulo its radix, a keyed
hash of the other, which is undone by subtracting it: a bijection of the pairs whatever the hash. Pairs at or
past `size` are sent through again until they land inside (cycle walking), which keeps it a bijection of
range(size). Fewer than one index in sqrt(size) walks, so the cost is hardly more than that of one pass. A
keyed rotation comes last; without it some small sizes would reach only the even permutations.

It mixes well and is no cipher: whoever sees many values may be able to predict others.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from steelyard_server.core import kernels
from steelyard_server.core.kernels.plain.permute import MULTIPLIER_1, MULTIPLIER_2

MAX_SIZE = 2**40

_HALF_ROUNDS = 10
# Halves of a few values mix slowly: 12 half-rounds are visibly uneven over the orders of 6 ids.
_SMALL = 1 << 10
_HALF_ROUNDS_SMALL = 16
_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def permute(index: npt.NDArray[np.uint64], size: int, key: int, tweak: int) -> npt.NDArray[np.uint64]:
    """Where the permutation of range(size) named by (key, tweak) sends each index: uint64[n] -> uint64[n].

    The same arguments give the same answer on every machine; two tweaks give permutations that look
    independent. ValueError unless 1 <= size <= 2**40, 0 <= key, tweak < 2**64 and every index is below
    `size`.
    """
    if not 1 <= size <= MAX_SIZE:
        raise ValueError(f"expected a size in 1..2**40, got {size}")
    for name, value in (("key", key), ("tweak", tweak)):
        if not 0 <= value <= _MASK:
            raise ValueError(f"expected a {name} in 0..2**64-1, got {value}")
    if index.dtype != np.uint64:
        raise ValueError(f"expected uint64 indices, got {index.dtype}")
    if index.size and int(index.max()) >= size:
        raise ValueError(f"expected indices below {size}, got {int(index.max())}")
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    half_rounds = _HALF_ROUNDS_SMALL if size < _SMALL else _HALF_ROUNDS
    rotation, *round_keys = _key_schedule(key, tweak, half_rounds)
    image = np.empty(index.size, np.uint64)
    kernels.active.permute(
        np.ascontiguousarray(index),
        np.uint64(size),
        np.uint64(rows),
        np.uint64(columns),
        np.uint64(rotation % size),
        np.array(round_keys, np.uint64),
        image,
    )
    return image


def _key_schedule(key: int, tweak: int, half_rounds: int) -> list[int]:
    """The rotation and the key of each half-round, as 64-bit words."""
    state = _mix(_mix(key + _GOLDEN) ^ tweak)
    return [_mix(state + i * _GOLDEN) for i in range(1, half_rounds + 2)]


def _mix(word: int) -> int:
    """The finaliser of SplitMix64: every input bit reaches every output bit."""
    word &= _MASK
    word = (word ^ (word >> 30)) * MULTIPLIER_1 & _MASK
    word = (word ^ (word >> 27)) * MULTIPLIER_2 & _MASK
    return word ^ (word >> 31)
