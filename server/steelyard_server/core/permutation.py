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

MAX_SIZE = 2**40

_HALF_ROUNDS = 10
# Halves of a few values mix slowly: 12 half-rounds are visibly uneven over the orders of 6 ids.
_SMALL = 1 << 10
_HALF_ROUNDS_SMALL = 16
_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
# A radix is at most 2**20, so a 43-bit fraction times it stays below 2**63, and the hash of a half is
# uniform below its radix to within 2**-23.
_FRACTION_BITS = 43

_Words = npt.NDArray[np.uint64]


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
    image = _pass(index, rows, columns, round_keys)
    outside = np.flatnonzero(image >= np.uint64(size))
    while outside.size:
        image[outside] = _pass(image[outside], rows, columns, round_keys)
        outside = outside[image[outside] >= np.uint64(size)]
    image += np.uint64(rotation % size)
    _reduce_once(image, size)
    return image


def _pass(pairs: _Words, rows: int, columns: int, round_keys: list[int]) -> _Words:
    left, right = np.divmod(pairs, np.uint64(columns))
    for round_number, round_key in enumerate(round_keys):
        if round_number % 2 == 0:
            left += _hash_below(right, round_key, rows)
            _reduce_once(left, rows)
        else:
            right += _hash_below(left, round_key, columns)
            _reduce_once(right, columns)
    left *= np.uint64(columns)
    left += right
    return left


def _hash_below(half: _Words, round_key: int, radix: int) -> _Words:
    word = half ^ np.uint64(round_key)
    word ^= word >> np.uint64(30)
    word *= np.uint64(_MULTIPLIER_1)
    word ^= word >> np.uint64(27)
    word *= np.uint64(_MULTIPLIER_2)
    word ^= word >> np.uint64(31)
    word >>= np.uint64(64 - _FRACTION_BITS)
    word *= np.uint64(radix)
    word >>= np.uint64(_FRACTION_BITS)
    return word


def _reduce_once(values: _Words, modulus: int) -> None:
    """Values below 2 * modulus, modulo it, in place: far cheaper than a division."""
    np.subtract(values, np.uint64(modulus), out=values, where=values >= np.uint64(modulus))


def _key_schedule(key: int, tweak: int, half_rounds: int) -> list[int]:
    """The rotation and the key of each half-round, as 64-bit words."""
    state = _mix(_mix(key + _GOLDEN) ^ tweak)
    return [_mix(state + i * _GOLDEN) for i in range(1, half_rounds + 2)]


def _mix(word: int) -> int:
    """The finaliser of SplitMix64: every input bit reaches every output bit."""
    word &= _MASK
    word = (word ^ (word >> 30)) * _MULTIPLIER_1 & _MASK
    word = (word ^ (word >> 27)) * _MULTIPLIER_2 & _MASK
    return word ^ (word >> 31)
