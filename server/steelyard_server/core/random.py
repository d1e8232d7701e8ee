"""Random numbers: a pure function of (seed, purpose, step).

Philox is a block cipher run on a counter, so a step needs its number and no history: key = [seed, purpose],
counter = [0, 0, 0, step]. The block index counts in the lowest word, so two steps, two purposes or two
neighbouring seeds never share a block. Only the raw words are used: NumPy promises those of a bit generator for
ever, but not what its distributions make of them.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

from steelyard_server.core import kernels

_WORD_BITS = 64
_MAX_WORD = 2**_WORD_BITS - 1
_MAX_BOUND = 2**63


class Purpose(enum.IntEnum):
    """What the numbers are for: part of the key, so that one use never shifts another. Values are fixed."""

    DRAW = 1
    ORDER = 2
    PERMUTATION = 3
    CHOICE = 4
    """Of a method that chooses with its own lots, besides the draw: noise, a pool, who is pruned."""
    MIX = 5
    """How many of a batch each group gives."""
    GROUP = 6
    """The seed of a group's own draw."""


class Bits:
    """A stream of uniform 64-bit words, read forward by each call. Make it with `bits`.

    What a call returns is defined word by word, as a scalar loop would read them, and does not depend on how
    the reading is vectorised.
    """

    __slots__ = ("_key", "_position")

    def __init__(self, seed: int, purpose: Purpose, step: int) -> None:
        self._key = np.uint64(seed), np.uint64(purpose), np.uint64(step)
        self._position = 0

    @property
    def position(self) -> int:
        """How many words have been read."""
        return self._position

    def go_back(self, position: int) -> None:
        """Reads on from a `position` that was before, as if nothing had been read since."""
        self._position = position

    def below(self, bound: int, size: int) -> npt.NDArray[np.uint64]:
        """`size` independent integers, exactly uniform on [0, bound), as uint64[size].

        Takes the top bits of each word and rejects what is not below `bound`: at most 2 words a value on
        average. ValueError unless 1 <= bound <= 2**63 and size >= 0.
        """
        if not 1 <= bound <= _MAX_BOUND:
            raise ValueError(f"expected a bound in 1..2**63, got {bound}")
        _check_size(size)
        if bound == 1:
            return np.zeros(size, np.uint64)
        values = np.empty(size, np.uint64)
        shift = np.uint64(_WORD_BITS - (bound - 1).bit_length())
        self._position = kernels.active.below(
            *self._key, np.uint64(self._position), np.uint64(bound), shift, values
        )
        return values

    def order(self, size: int) -> npt.NDArray[np.int64]:
        """A uniformly random permutation of range(size), as int64[size].

        ValueError unless size >= 0.
        """
        _check_size(size)
        order = np.empty(size, np.int64)
        self._position = kernels.active.order(*self._key, np.uint64(self._position), order)
        return order


def bits(seed: int, purpose: Purpose, step: int) -> Bits:
    """The stream for `purpose` at `step` of a run with `seed`; both in 0..2**64-1, else ValueError."""
    for name, value in (("seed", seed), ("step", step)):
        if not 0 <= value <= _MAX_WORD:
            raise ValueError(f"expected a {name} in 0..2**64-1, got {value}")
    return Bits(seed, purpose, step)


def _check_size(size: int) -> None:
    if size < 0:
        raise ValueError(f"expected a size of 0 or more, got {size}")
