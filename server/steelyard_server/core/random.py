"""The one place that makes random numbers: a pure function of (seed, purpose, step).

Philox is a block cipher run on a counter, so a step needs its number and no history: key = [seed, purpose],
counter = [0, 0, 0, step]. The block index counts in the lowest word, so two steps, two purposes or two
neighbouring seeds never share a block. Only `random_raw` is used: NumPy promises the raw words of a bit
generator for ever, but not what its distributions make of them.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

_WORD_BITS = 64
_MAX_WORD = 2**_WORD_BITS - 1
_MAX_BOUND = 2**63


class Purpose(enum.IntEnum):
    """What the numbers are for: part of the key, so that one use never shifts another. Values are fixed."""

    DRAW = 1
    ORDER = 2
    PERMUTATION = 3


class Bits:
    """A stream of uniform 64-bit words, read forward by each call. Make it with `bits`.

    What a call returns is defined word by word, as a scalar loop would read them, and does not depend on how
    the reading is vectorised.
    """

    __slots__ = ("_philox",)

    def __init__(self, philox: np.random.Philox) -> None:
        self._philox = philox

    def below(self, bound: int, size: int) -> npt.NDArray[np.uint64]:
        """`size` independent integers, exactly uniform on [0, bound), as uint64[size].

        Takes the top bits of each word and rejects what is not below `bound`: at most 2 words a value on
        average. ValueError unless 1 <= bound <= 2**63 and size >= 0.
        """
        if not 1 <= bound <= _MAX_BOUND:
            raise ValueError(f"expected a bound in 1..2**63, got {bound}")
        _check_size(size)
        values = np.zeros(size, np.uint64)
        if bound == 1:
            return values
        shift = np.uint64(_WORD_BITS - (bound - 1).bit_length())
        filled = 0
        while filled < size:
            # Asking for no more than is missing means that no accepted word is ever thrown away, so the
            # stream stands after the call exactly where a scalar loop would have left it.
            candidates = self._words(size - filled) >> shift
            accepted = candidates[candidates < np.uint64(bound)]
            values[filled : filled + accepted.size] = accepted
            filled += accepted.size
        return values

    def order(self, size: int) -> npt.NDArray[np.int64]:
        """A uniformly random permutation of range(size), as int64[size]; O(size log size).

        ValueError unless size >= 0.
        """
        _check_size(size)
        while True:
            keys = self._words(size)
            order = np.argsort(keys, kind="stable")
            ranked = keys[order]
            # Equal keys would favour the lower index; drawing again makes every order exactly equally likely.
            if not np.any(ranked[1:] == ranked[:-1]):
                return order.astype(np.int64, copy=False)

    def _words(self, size: int) -> npt.NDArray[np.uint64]:
        return self._philox.random_raw(size)


def bits(seed: int, purpose: Purpose, step: int) -> Bits:
    """The stream for `purpose` at `step` of a run with `seed`; both in 0..2**64-1, else ValueError."""
    for name, value in (("seed", seed), ("step", step)):
        if not 0 <= value <= _MAX_WORD:
            raise ValueError(f"expected a {name} in 0..2**64-1, got {value}")
    key = np.array([seed, int(purpose)], np.uint64)
    counter = np.array([0, 0, 0, step], np.uint64)
    return Bits(np.random.Philox(key=key, counter=counter))


def _check_size(size: int) -> None:
    if size < 0:
        raise ValueError(f"expected a size of 0 or more, got {size}")
