"""Every id exactly once an epoch, in a different order each epoch.

The order is a keyed permutation, so an epoch costs no memory. The stream of epochs is continuous: a batch that meets
the end of an epoch goes on with the next one. When the dataset grows in the middle of an epoch, what is left of it and
the new ids are shuffled together by a further permutation (a level), so each of them still comes once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from steelyard.source import Source
from steelyard_server.core.permutation import permute
from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw.contract import Draw, Drawer, Drawn, Examples, Ids
from steelyard_server.policies.draw.rows import contains

_LEVELS_PER_EPOCH = 1 << 20


class Shuffle(Draw):
    """A plain shuffle. It reads no reports; never-reported examples are drawn like any other."""

    source: ClassVar[Source] = Source(
        "Plain training: each example once an epoch", "the order is a keyed permutation (core/permutation.py)"
    )
    never_reported: ClassVar[str] = "Drawn like any other: it reads no reports."

    method: Literal["shuffle"] = "shuffle"

    @property
    def derived(self) -> tuple[Derived, ...]:
        return ()

    @property
    def static(self) -> tuple[str, ...]:
        return ()

    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> ShuffleDrawer:
        return ShuffleDrawer(examples, seed, batch_size, state)


class _Level(BaseModel):
    """A shuffle of `left` indices of the level below, from `start` on, and of size - left ids from `first` on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    left: int = 0
    start: int = 0
    first: int = 0


class _Place(BaseModel):
    """Where in the stream of epochs the next batch begins: index `cursor` of the topmost level."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epoch: int
    cursor: int
    levels: tuple[_Level, ...]

    @property
    def size(self) -> int:
        """How many ids the epoch has, those before `cursor` included."""
        return sum(level.size - level.left for level in self.levels)

    def grown(self, size: int) -> _Place:
        """The place once the dataset has `size` ids: what is left of the epoch and the new ids, shuffled together."""
        new, top = size - self.size, self.levels[-1]
        if self.cursor == 0:
            # Nothing came from the topmost level yet, so it can hold the new ids as well: appends between two draws
            # make one level, however many they are.
            grown = top.model_copy(update={"size": top.size + new})
            return self.model_copy(update={"levels": (*self.levels[:-1], grown)})
        left = top.size - self.cursor
        level = _Level(size=left + new, left=left, start=self.cursor, first=self.size)
        return _Place(epoch=self.epoch, cursor=0, levels=(*self.levels, level))


class ShuffleDrawer(Drawer):
    """A draw costs O(B) for each level of the epoch, and size / drawable times as much where ids are retired."""

    def __init__(
        self, examples: Examples, seed: int, batch_size: int, state: Mapping[str, Any] | None
    ) -> None:
        self._examples = examples
        self._seed = seed
        self._batch_size = batch_size
        self._place = _Place.model_validate(state) if state else self._epoch(0)

    def draw(self, step: int, count: int | None = None) -> Drawn:
        if not self.drawable:
            raise ValueError("no example may be drawn: all are retired")
        parts: list[Ids] = []
        place, missing = self._place, self._batch_size if count is None else count
        while missing:
            ids, place = self._take(place, missing)
            parts.append(ids)
            missing -= len(ids)
        return Drawn(np.concatenate(parts), None, 1.0 / self.drawable, place.model_dump(mode="json"))

    def changed(self, ids: Ids) -> None:
        pass

    def grew(self) -> None:
        self._place = self._place.grown(self._examples.size)

    def retired(self, ids: Ids) -> None:
        pass

    def get_state(self) -> Mapping[str, Any]:
        return self._place.model_dump(mode="json")

    def set_draw_state(self, state: Mapping[str, Any]) -> None:
        self._place = _Place.model_validate(state)

    @property
    def drawable(self) -> int:
        return self._examples.size - len(self._examples.retired)

    def check(self) -> None:
        place = self._place
        assert 0 <= place.cursor <= place.levels[-1].size, place
        assert place.size == self._examples.size, (place, self._examples.size)

    def _epoch(self, epoch: int) -> _Place:
        return _Place(epoch=epoch, cursor=0, levels=(_Level(size=self._examples.size),))

    def _take(self, place: _Place, count: int) -> tuple[Ids, _Place]:
        """The next ids of the stream that may be drawn, at most `count` and at most to the end of the epoch, and the
        place behind them."""
        if place.cursor == place.levels[-1].size:
            place = self._epoch(place.epoch + 1)
        # As many indices as hold `count` drawable ids on average: were there fewer at a time, a dataset that is
        # nearly all retired would take one pass for each id of the batch.
        wide = -(-count * self._examples.size // self.drawable)
        stop = min(place.cursor + wide, place.levels[-1].size)
        ids = self._resolve(place, np.arange(place.cursor, stop, dtype=np.uint64))
        if len(self._examples.retired):
            kept = np.flatnonzero(~contains(self._examples.retired, ids))[:count]
            if len(kept) == count:
                stop = place.cursor + int(kept[-1]) + 1
            ids = ids[kept]
        return ids, place.model_copy(update={"cursor": stop})

    def _resolve(self, place: _Place, index: npt.NDArray[np.uint64]) -> Ids:
        """The ids at indices of the topmost level: uint64[n] -> int64[n]."""
        ids = np.empty(len(index), np.int64)
        at = np.arange(len(index))
        for depth in range(len(place.levels) - 1, -1, -1):
            if not len(at):
                break
            level = place.levels[depth]
            tweak = place.epoch * _LEVELS_PER_EPOCH + depth
            shuffled = permute(index, level.size, self._seed, tweak).astype(np.int64)
            new = shuffled >= level.left
            ids[at[new]] = level.first + shuffled[new] - level.left
            at, index = at[~new], (level.start + shuffled[~new]).astype(np.uint64)
        return ids
