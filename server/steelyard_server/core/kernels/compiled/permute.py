"""The passes of the keyed permutation, one index at a time; see core.permutation."""

from __future__ import annotations

import numpy as np

from steelyard_server.core.kernels.compiled.machine import NOTHING, READ_WORDS, WORD, WORDS, inlined, kernel
from steelyard_server.core.kernels.contract import Word
from steelyard_server.core.kernels.layout import Words
from steelyard_server.core.kernels.plain.permute import FRACTION_BITS, MULTIPLIER_1, MULTIPLIER_2

_MULTIPLIER_1 = np.uint64(MULTIPLIER_1)
_MULTIPLIER_2 = np.uint64(MULTIPLIER_2)
_FRACTION_BITS = np.uint64(FRACTION_BITS)
_DROPPED_BITS = np.uint64(64 - FRACTION_BITS)
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)


@inlined
def _pass(pair: Word, rows: Word, columns: Word, round_keys: Words) -> Word:
    left = pair // columns
    right = pair - left * columns
    for number in range(0, round_keys.size, 2):
        left = _reduce_once(left + _hash_below(right, round_keys[number], rows), rows)
        right = _reduce_once(right + _hash_below(left, round_keys[number + 1], columns), columns)
    return left * columns + right


@inlined
def _hash_below(half: Word, round_key: Word, radix: Word) -> Word:
    word = half ^ round_key
    word = (word ^ (word >> _30)) * _MULTIPLIER_1
    word = (word ^ (word >> _27)) * _MULTIPLIER_2
    word = (word ^ (word >> _31)) >> _DROPPED_BITS
    return (word * radix) >> _FRACTION_BITS


@inlined
def _reduce_once(value: Word, modulus: Word) -> Word:
    return value - modulus if value >= modulus else value


@kernel(NOTHING, READ_WORDS, WORD, WORD, WORD, WORD, READ_WORDS, WORDS)
def permute(
    index: Words, size: Word, rows: Word, columns: Word, rotation: Word, round_keys: Words, image: Words
) -> None:
    for i in range(index.size):
        place = _pass(index[i], rows, columns, round_keys)
        while place >= size:
            place = _pass(place, rows, columns, round_keys)
        image[i] = _reduce_once(place + rotation, size)
