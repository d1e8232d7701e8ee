"""Random bits by their definition: the words of Philox 4x64 with key [seed, purpose] and counter [0, 0, 0, step]."""

from __future__ import annotations

import numpy as np

DRAW, ORDER, MIX, GROUP = 1, 2, 5, 6


class Words:
    """The 64-bit words of one purpose at one step, read forward one at a time."""

    def __init__(self, seed: int, purpose: int, step: int) -> None:
        key = np.array([seed, purpose], np.uint64)
        counter = np.array([0, 0, 0, step], np.uint64)
        self._philox = np.random.Philox(key=key, counter=counter)

    def word(self) -> int:
        return int(self._philox.random_raw())

    def below(self, bound: int) -> int:
        """Uniform on 0..bound-1: the top bits of a word, and the next word where they are not below the bound."""
        if bound == 1:
            return 0
        while (value := self.word() >> (64 - (bound - 1).bit_length())) >= bound:
            pass
        return value

    def order(self, size: int) -> list[int]:
        """A uniformly random order of range(size): that of one word for each, all drawn again where two are equal."""
        while True:
            words = [self.word() for _ in range(size)]
            if len(set(words)) == size:
                return sorted(range(size), key=words.__getitem__)
