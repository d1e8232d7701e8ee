"""A column as it was at one moment, while the run goes on changing it.

It is not copied at that moment but read later, piece by piece, on another thread. What changes in a piece that is not
read yet is put aside first, one value for each: 12 bytes of memory until then, or 4 where many ids in a row change.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from steelyard_server.core.events import Float32s, Ids
from steelyard_server.history.chunks import CHUNK

_CHUNKS_AT_ONCE = 16
_GROUP = _CHUNKS_AT_ONCE * CHUNK
_MANY = 1 << 14
"""Ids of one change that are put aside by group, so that those of others need not be gone through."""


@dataclass(slots=True, eq=False)
class _Few:
    """Old values of ids, the oldest first where an id repeats."""

    ids: Ids
    old: Float32s

    def undo(self, piece: Float32s, start: int) -> None:
        here = (self.ids >= start) & (self.ids < start + len(piece))
        # Backwards, so that the oldest of several values of an id is the one that stays.
        piece[self.ids[here][::-1] - start] = self.old[here][::-1]

    def forget(self, stop: int) -> None:
        later = self.ids >= stop
        self.ids, self.old = self.ids[later], self.old[later]


@dataclass(slots=True, eq=False)
class _Many:
    """Old values of many ids, each once, ascending: by group, the ids as a slice where they stand in a row."""

    groups: dict[int, tuple[slice | Ids, Float32s]] = field(default_factory=dict)

    @classmethod
    def of(cls, ids: Ids, values: Float32s, read_to: int) -> _Many:
        if not np.all(ids[1:] > ids[:-1]):
            ids = np.unique(ids)
        many = cls()
        first, last = max(int(ids[0]), read_to) // _GROUP, int(ids[-1]) // _GROUP
        edges = np.searchsorted(ids, np.arange(first, last + 2) * _GROUP).tolist()
        for group, begin, end in zip(range(first, last + 1), edges[:-1], edges[1:], strict=True):
            if begin < end:
                low, high = int(ids[begin]), int(ids[end - 1]) + 1
                at = slice(low, high) if high - low == end - begin else ids[begin:end].copy()
                many.groups[group] = at, values[at].copy()
        return many

    def undo(self, piece: Float32s, start: int) -> None:
        stop = start + len(piece)
        for group in range(start // _GROUP, -(-stop // _GROUP)):
            at, old = self.groups.get(group, (slice(0, 0), np.empty(0, np.float32)))
            if isinstance(at, slice):
                low, high = max(at.start, start), min(at.stop, stop)
                if low < high:
                    piece[low - start : high - start] = old[low - at.start : high - at.start]
            else:
                low, high = np.searchsorted(at, (start, stop))
                piece[at[low:high] - start] = old[low:high]

    def forget(self, stop: int) -> None:
        self.groups = {group: kept for group, kept in self.groups.items() if (group + 1) * _GROUP > stop}


class FrozenColumn:
    """What a column held when this was made. `keep` is for the thread that changes it, `read` for one other."""

    def __init__(self, values: Float32s) -> None:
        self.values = values
        self._aside: deque[_Few | _Many] = deque()
        self._read_to = 0
        self._taken: list[_Few | _Many] = []

    def keep(self, ids: Ids) -> None:
        """To be called before the values at `ids` change."""
        if self._read_to >= len(self.values) or not len(ids):
            return
        if len(ids) < _MANY:
            self._aside.append(_Few(ids, self.values[ids]))
        else:
            self._aside.append(_Many.of(ids, self.values, self._read_to))

    def chunks(self, indices: Sequence[int]) -> Iterator[tuple[int, Float32s]]:
        """(index, values) of chunks, which are given in order; read some at a time. Ends the keeping."""
        place = 0
        while place < len(indices):
            first = indices[place]
            behind = bisect_left(indices, (first // _CHUNKS_AT_ONCE + 1) * _CHUNKS_AT_ONCE, place)
            start = first * CHUNK
            piece = self.read(start, min((indices[behind - 1] + 1) * CHUNK, len(self.values)))
            for index in indices[place:behind]:
                yield index, piece[index * CHUNK - start : (index + 1) * CHUNK - start]
            place = behind
        self._read_to = len(self.values)
        self._aside.clear()
        self._taken.clear()

    def read(self, start: int, stop: int) -> Float32s:
        """The values start..stop-1, as they were: a copy. Each call goes on at or behind the stop of the last."""
        piece = self.values[start:stop].copy()
        # Only now: what the copy has of later changes had been put aside before they were made.
        self._take_aside()
        for one in reversed(self._taken):
            one.undo(piece, start)
        self._read_to = stop
        for one in self._taken:
            one.forget(stop)
        return piece

    def _take_aside(self) -> None:
        few: list[_Few] = []
        for _ in range(len(self._aside)):
            one = self._aside.popleft()
            if isinstance(one, _Few):
                few.append(one)
            else:
                self._take_few(few)
                self._taken.append(one)
                few = []
        self._take_few(few)

    def _take_few(self, few: Sequence[_Few]) -> None:
        """As one, so that it does not matter how many there were."""
        if not few:
            return
        last = self._taken[-1] if self._taken else None
        together = [last, *few] if isinstance(last, _Few) else few
        joined = _Few(
            np.concatenate([one.ids for one in together]), np.concatenate([one.old for one in together])
        )
        if isinstance(last, _Few):
            self._taken[-1] = joined
        else:
            self._taken.append(joined)
