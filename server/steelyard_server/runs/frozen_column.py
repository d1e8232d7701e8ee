"""A column as it was at one moment, while the run goes on changing it.

It is not copied at that moment but read later, piece by piece, on another thread. What changes in a piece that is not
read yet is put aside first, one value for each: 12 bytes of memory until then.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from steelyard_server.core.events import Float32s, Ids
from steelyard_server.history.chunks import CHUNK

_CHUNKS_AT_ONCE = 16


class FrozenColumn:
    """What a column held when this was made. `keep` is for the thread that changes it, `read` for one other."""

    def __init__(self, values: Float32s) -> None:
        self.values = values
        self._aside: deque[tuple[Ids, Float32s]] = deque()
        self._read_to = 0
        self._ids, self._old = np.empty(0, np.int64), np.empty(0, np.float32)

    def keep(self, ids: Ids) -> None:
        """To be called before the values at `ids` change."""
        if self._read_to < len(self.values):
            self._aside.append((ids, self.values[ids]))

    def chunks(self, indices: Sequence[int]) -> Iterator[tuple[int, Float32s]]:
        """(index, values) of chunks, which are given in order; read some at a time. Ends the keeping."""
        place = 0
        while place < len(indices):
            first = indices[place]
            last = bisect_left(indices, first + _CHUNKS_AT_ONCE, place) - 1
            start = first * CHUNK
            piece = self.read(start, min((indices[last] + 1) * CHUNK, len(self.values)))
            for index in indices[place : last + 1]:
                yield index, piece[index * CHUNK - start : (index + 1) * CHUNK - start]
            place = last + 1
        self._read_to = len(self.values)

    def read(self, start: int, stop: int) -> Float32s:
        """The values start..stop-1, as they were: a copy. Each call goes on at or behind the stop of the last."""
        piece = self.values[start:stop].copy()
        # Only now: what the copy has of later changes had been put aside before they were made.
        self._take_aside()
        here = (self._ids >= start) & (self._ids < stop)
        # Backwards, so that the oldest of several values of an id is the one that stays.
        piece[self._ids[here][::-1] - start] = self._old[here][::-1]
        later = self._ids >= stop
        self._ids, self._old = self._ids[later], self._old[later]
        self._read_to = stop
        return piece

    def _take_aside(self) -> None:
        taken = [self._aside.popleft() for _ in range(len(self._aside))]
        if taken:
            self._ids = np.concatenate([self._ids, *(ids for ids, _ in taken)])
            self._old = np.concatenate([self._old, *(old for _, old in taken)])
