"""Random words of Philox 4x64 with 10 rounds, and what is made of them.

Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (2011), with its constants.
"""

from __future__ import annotations

import numpy as np
from numba import types

from steelyard_server.core.kernels.compiled.instructions import high_word
from steelyard_server.core.kernels.compiled.machine import IDS, WORD, WORDS, inlined, kernel
from steelyard_server.core.kernels.contract import Ids, Word
from steelyard_server.core.kernels.layout import Words

_MULTIPLIER_0 = np.uint64(0xD2E7470EE14C6C93)
_MULTIPLIER_2 = np.uint64(0xCA5A826395121157)
_KEY_STEP_0 = np.uint64(0x9E3779B97F4A7C15)
_KEY_STEP_1 = np.uint64(0xBB67AE8584CAA73B)
_ROUNDS = 10
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_TWO = np.uint64(2)
_THREE = np.uint64(3)
_WORD_BITS = np.uint64(64)


@inlined
def _block(seed: Word, purpose: Word, step: Word, number: Word) -> tuple[Word, Word, Word, Word]:
    """The four words of one block."""
    a, b, c, d = number, _ZERO, _ZERO, step
    key, other_key = seed, purpose
    for _ in range(_ROUNDS):
        a, b, c, d = (
            high_word(_MULTIPLIER_2, c) ^ b ^ key,
            _MULTIPLIER_2 * c,
            high_word(_MULTIPLIER_0, a) ^ d ^ other_key,
            _MULTIPLIER_0 * a,
        )
        key += _KEY_STEP_0
        other_key += _KEY_STEP_1
    return a, b, c, d


@inlined
def _fill(seed: Word, purpose: Word, step: Word, position: Word, words: Words) -> None:
    """The words from `position` on; room for three more than are asked for at both ends."""
    number, at = (position >> _TWO) + _ONE, 0
    while at < words.size:
        words[at], words[at + 1], words[at + 2], words[at + 3] = _block(seed, purpose, step, number)
        number += _ONE
        at += 4


@inlined
def _words(seed: Word, purpose: Word, step: Word, position: Word, count: int) -> Words:
    skipped = np.int64(position & _THREE)
    words = np.empty((skipped + count + 3) & ~3, np.uint64)
    _fill(seed, purpose, step, position, words)
    return words[skipped : skipped + count]


@inlined
def _rank(keys: Words, order: Ids) -> bool:
    """Sorts uniform keys by their top bits into as many buckets, and those by insertion: O(n). False at a tie."""
    bits = 1
    while (1 << bits) < keys.size:
        bits += 1
    shift = _WORD_BITS - np.uint64(bits)
    begins = np.zeros((1 << bits) + 1, np.int64)
    for i in range(keys.size):
        begins[(keys[i] >> shift) + _ONE] += 1
    for bucket in range(1 << bits):
        begins[bucket + 1] += begins[bucket]
    ranked = np.empty(keys.size, np.uint64)
    for i in range(keys.size):
        key = keys[i]
        bucket = key >> shift
        place = begins[bucket]
        begins[bucket] = place + 1
        order[place], ranked[place] = i, key
    # Buckets stand in order, so a key moves within its own.
    for i in range(1, keys.size):
        key, index, place = ranked[i], order[i], i
        while place > 0 and ranked[place - 1] > key:
            ranked[place], order[place] = ranked[place - 1], order[place - 1]
            place -= 1
        ranked[place], order[place] = key, index
        if place > 0 and ranked[place - 1] == key:
            return False
    return True


@kernel(types.int64, WORD, WORD, WORD, WORD, WORD, WORD, WORDS)
def below(
    seed: Word, purpose: Word, step: Word, position: Word, bound: Word, shift: Word, values: Words
) -> int:
    filled = 0
    while filled < values.size:
        words = _words(seed, purpose, step, position, values.size - filled)
        position += np.uint64(words.size)
        for i in range(words.size):
            value = words[i] >> shift
            values[filled] = value
            filled += int(value < bound)
    return int(position)


@kernel(types.int64, WORD, WORD, WORD, WORD, IDS)
def order(seed: Word, purpose: Word, step: Word, position: Word, order: Ids) -> int:
    while True:
        keys = _words(seed, purpose, step, position, order.size)
        position += np.uint64(keys.size)
        if _rank(keys, order):
            return int(position)
