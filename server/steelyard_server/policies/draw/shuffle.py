"""Every id exactly once an epoch, in a different order each epoch.

The order is a keyed permutation, so an epoch costs no memory. The stream of epochs is continuous: a batch that meets
the end of an epoch goes on with the next one. When the dataset grows in the middle of an epoch, what is left of it and
the new ids are shuffled together by a further permutation (a level), so each of them still comes once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from steelyard_server.core.permutation import permute
from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw.contract import Draw, Drawer, Drawn, Examples, Ids

_LEVELS_PER_EPOCH = 1 << 20


class Shuffle(Draw):
    """A plain shuffle. It reads no reports; never-reported examples are drawn like any other."""

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


class ShuffleDrawer(Drawer):
    def __init__(
        self, examples: Examples, seed: int, batch_size: int, state: Mapping[str, Any] | None
    ) -> None:
        self._examples = examples
        self._seed = seed
        self._batch_size = batch_size
        self._place = _Place.model_validate(state) if state else self._epoch(0)

    def draw(self, step: int) -> Drawn:
        if not self.drawable:
            raise ValueError("no example may be drawn: all are retired")
        parts: list[Ids] = []
        missing = self._batch_size
        while missing:
            ids = self._take(missing)
            if len(self._examples.retired):
                ids = ids[~_contains(self._examples.retired, ids)]
            parts.append(ids)
            missing -= len(ids)
        return Drawn(np.concatenate(parts), None, 1.0 / self.drawable)

    def changed(self, ids: Ids) -> None:
        pass

    def grew(self) -> None:
        place = self._place
        known = place.levels[0].size + sum(level.size - level.left for level in place.levels[1:])
        left, new = place.levels[-1].size - place.cursor, self._examples.size - known
        level = _Level(size=left + new, left=left, start=place.cursor, first=known)
        self._place = _Place(epoch=place.epoch, cursor=0, levels=(*place.levels, level))

    def retired(self, ids: Ids) -> None:
        pass

    def get_state(self) -> Mapping[str, Any]:
        return self.draw_state()

    def draw_state(self) -> Mapping[str, Any]:
        return self._place.model_dump(mode="json")

    def set_draw_state(self, state: Mapping[str, Any]) -> None:
        self._place = _Place.model_validate(state)

    @property
    def drawable(self) -> int:
        return self._examples.size - len(self._examples.retired)

    def check(self) -> None:
        assert 0 <= self._place.cursor <= self._place.levels[-1].size, self._place

    def _epoch(self, epoch: int) -> _Place:
        return _Place(epoch=epoch, cursor=0, levels=(_Level(size=self._examples.size),))

    def _take(self, count: int) -> Ids:
        """The next ids of the stream, at most `count` and at most to the end of the epoch."""
        if self._place.cursor == self._place.levels[-1].size:
            self._place = self._epoch(self._place.epoch + 1)
        place = self._place
        stop = min(place.cursor + count, place.levels[-1].size)
        ids = self._resolve(np.arange(place.cursor, stop, dtype=np.uint64))
        self._place = place.model_copy(update={"cursor": stop})
        return ids

    def _resolve(self, index: npt.NDArray[np.uint64]) -> Ids:
        ids = np.empty(len(index), np.int64)
        at = np.arange(len(index))
        for depth in range(len(self._place.levels) - 1, -1, -1):
            level = self._place.levels[depth]
            if not len(at):
                break
            tweak = self._place.epoch * _LEVELS_PER_EPOCH + depth
            shuffled = permute(index, level.size, self._seed, tweak).astype(np.int64)
            new = shuffled >= level.left
            ids[at[new]] = level.first + shuffled[new] - level.left
            at, index = at[~new], (level.start + shuffled[~new]).astype(np.uint64)
        return ids


def _contains(ordered: Ids, ids: Ids) -> npt.NDArray[np.bool_]:
    found = np.searchsorted(ordered, ids)
    return np.asarray(ordered[np.minimum(found, len(ordered) - 1)] == ids)
