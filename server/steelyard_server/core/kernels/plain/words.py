"""Random words of Philox 4x64 with 10 rounds by NumPy's own generator, and what is made of them."""

from __future__ import annotations

import numpy as np

from steelyard_server.core.kernels.contract import Ids, Word
from steelyard_server.core.kernels.layout import Words


def below(
    seed: Word, purpose: Word, step: Word, position: Word, bound: Word, shift: Word, values: Words
) -> int:
    place, filled = int(position), 0
    while filled < values.size:
        # Asking for no more than is missing means that no accepted word is ever thrown away, so the stream stands
        # after the call exactly where a scalar loop would have left it.
        candidates = _words(seed, purpose, step, place, values.size - filled) >> shift
        place += candidates.size
        accepted = candidates[candidates < bound]
        values[filled : filled + accepted.size] = accepted
        filled += accepted.size
    return place


def order(seed: Word, purpose: Word, step: Word, position: Word, order: Ids) -> int:
    place = int(position)
    while True:
        keys = _words(seed, purpose, step, place, order.size)
        place += keys.size
        order[:] = np.argsort(keys, kind="stable")
        ranked = keys[order]
        # Equal keys would favour the lower index; drawing again makes every order exactly equally likely.
        if not np.any(ranked[1:] == ranked[:-1]):
            return place


def _words(seed: Word, purpose: Word, step: Word, position: int, count: int) -> Words:
    """`count` words of the stream from `position` on. A block has four, and the counter of the first is 1."""
    counter = np.array([position >> 2, 0, 0, step], np.uint64)
    philox = np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=counter)
    skipped = position & 3
    words: Words = philox.random_raw(skipped + count)[skipped:]
    return words
