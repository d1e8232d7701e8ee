"""The passes of the keyed permutation; see core.permutation."""

from __future__ import annotations

import numpy as np

from steelyard_server.core.kernels.contract import Word
from steelyard_server.core.kernels.layout import Words

MULTIPLIER_1 = 0xBF58476D1CE4E5B9
MULTIPLIER_2 = 0x94D049BB133111EB
FRACTION_BITS = 43
"""A radix is at most 2**20, so a 43-bit fraction times it stays below 2**63, and the hash of a half is uniform below
its radix to within 2**-23."""


def permute(
    index: Words, size: Word, rows: Word, columns: Word, rotation: Word, round_keys: Words, image: Words
) -> None:
    image[:] = _pass(index, rows, columns, round_keys)
    outside = np.flatnonzero(image >= size)
    while outside.size:
        image[outside] = _pass(image[outside], rows, columns, round_keys)
        outside = outside[image[outside] >= size]
    image += rotation
    _reduce_once(image, size)


def _pass(pairs: Words, rows: Word, columns: Word, round_keys: Words) -> Words:
    left, right = np.divmod(pairs, columns)
    for number, round_key in enumerate(round_keys):
        if number % 2 == 0:
            left += _hash_below(right, round_key, rows)
            _reduce_once(left, rows)
        else:
            right += _hash_below(left, round_key, columns)
            _reduce_once(right, columns)
    left *= columns
    left += right
    return left


def _hash_below(half: Words, round_key: Word, radix: Word) -> Words:
    word = half ^ round_key
    word ^= word >> np.uint64(30)
    word *= np.uint64(MULTIPLIER_1)
    word ^= word >> np.uint64(27)
    word *= np.uint64(MULTIPLIER_2)
    word ^= word >> np.uint64(31)
    word >>= np.uint64(64 - FRACTION_BITS)
    word *= radix
    word >>= np.uint64(FRACTION_BITS)
    return word


def _reduce_once(values: Words, modulus: Word) -> None:
    """Values below 2 * modulus, modulo it, in place: far cheaper than a division."""
    np.subtract(values, modulus, out=values, where=values >= modulus)
