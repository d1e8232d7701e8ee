"""An epoch in the order of a key, ascending; or uniform draws from a window that opens over that order.

Ties come in a seeded random order, and the examples of a batch in another. Keys are read at the start of an epoch
(of the window: of each size / batch_size steps) and held until its end, as float32. Ids without a key come last.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard_server.core.permutation import permute
from steelyard_server.core.random import Purpose, bits
from steelyard_server.policies.draw.contract import Drawn, Examples, Float32s, Ids
from steelyard_server.policies.draw.engines.epochs import Epoch, EpochDraw, EpochDrawer, Float64s, Place
from steelyard_server.policies.draw.rows import Moment, Rows, contains

KEY = "own:key"
"""float32[size]: the key in the running epoch, inf where the method has none; NaN where the id is not in it."""


class OrderedDraw(EpochDraw):
    """A draw of which a method says the order."""

    @abstractmethod
    def keys(self, rows: Rows, moment: Moment) -> Float64s:
        """The key of each example, float64[size]; NaN where it has none. A function of its arguments alone."""

    def share(self, step: int) -> float | None:
        """How much of the order, from its beginning, the batch of `step` is drawn from, uniformly: 0 to 1, and a batch
        at least. None: epochs go through the order."""
        return None

    @property
    def own(self) -> tuple[str, ...]:
        return (KEY,)

    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> OrderedDrawer:
        kind = OrderedDrawer if self.share(0) is None else WindowDrawer
        return kind(self, examples, seed, batch_size, state)


class OrderedEpoch(Epoch):
    """The ids that have a key, in its order. Memory: 8 bytes an id."""

    def __init__(self, examples: Examples, seed: int) -> None:
        self._columns = examples.columns
        self._seed = seed
        self._turn = -1
        self._order = np.empty(0, np.int64)
        self.length = self.distinct = int(np.count_nonzero(~np.isnan(self._columns[KEY])))

    def at(self, turn: int, start: int, stop: int) -> Ids:
        if turn != self._turn:
            # O(length · log), once a turn.
            self._order, self._turn = self._sorted(turn), turn
        return self._order[start:stop]

    def copies(self, ids: Ids) -> npt.NDArray[np.int64]:
        return (~np.isnan(self._columns[KEY][ids])).astype(np.int64)

    def _sorted(self, turn: int) -> Ids:
        keys = self._columns[KEY]
        ids = np.flatnonzero(~np.isnan(keys))
        ids = ids[permute(np.arange(len(ids), dtype=np.uint64), len(ids), self._seed, turn)]
        return ids[np.argsort(keys[ids], kind="stable")]


class OrderedDrawer(EpochDrawer):
    """Draws each epoch in the order of its keys."""

    def __init__(
        self,
        draw: OrderedDraw,
        examples: Examples,
        seed: int,
        batch_size: int,
        state: Mapping[str, Any] | None,
    ) -> None:
        self._draw = draw
        super().__init__(examples, seed, batch_size, state, weighs=False)

    def draw(self, step: int, count: int | None = None) -> Drawn:
        drawn = super().draw(step, count)
        order = bits(self._seed, Purpose.ORDER, step).order(len(drawn.ids))
        probability = None if drawn.probability is None else drawn.probability[order]
        return replace(drawn, ids=drawn.ids[order], probability=probability)

    def _choose(self, rows: Rows, moment: Moment) -> None:
        keys = self._draw.keys(rows, moment)
        if keys.shape != (rows.size,):
            raise ValueError(f"expected keys float64[{rows.size}], got {keys.dtype}{list(keys.shape)}")
        held = _narrow(keys)
        held[rows.retired] = np.nan
        before = self._examples.columns[KEY]
        at = np.flatnonzero((held != before) & ~(np.isnan(held) & np.isnan(before)))
        self._examples.put(KEY, at, held[at])

    def _read(self) -> Epoch:
        return OrderedEpoch(self._examples, self._seed)


class WindowDrawer(OrderedDrawer):
    """Draws each batch from the first `share` of the order, no id twice while there are enough.

    `cursor` counts the batches since the keys were read.
    """

    _LOTS_PER_STEP = 1 << 20
    _alive: Ids | None = None
    """Those of the order that are not retired, once a batch was drawn from them."""

    def prepare(self, step: int) -> None:
        place = self._place
        if not self._live or (place is not None and place.step == step):
            return
        if (
            place is None
            or place.cursor * self._batch_size >= self._epoch_of().length
            or not self._order_size
        ):
            choice = 0 if place is None else place.choice + 1
            self._begin(Place(choice=choice, turn=choice, cursor=0, step=step))

    def draw(self, step: int, count: int | None = None) -> Drawn:
        place, missing = self._place, self._batch_size if count is None else count
        if place is None or not self._order_size:
            raise ValueError("no example may be drawn: all are retired, or nothing was prepared")
        order = self._order(place)
        window = self._window(step)
        places = [
            permute(
                np.arange(min(window, missing - start), dtype=np.uint64),
                window,
                self._seed,
                step * self._LOTS_PER_STEP + start // window,
            )
            for start in range(0, missing, window)
        ]
        state = place.model_copy(update={"cursor": place.cursor + 1}).model_dump(mode="json")
        return Drawn(order[np.concatenate(places)], None, 1.0 / window, state)

    def retired(self, ids: Ids) -> None:
        self._alive = None
        super().retired(ids)

    def _take_epoch(self) -> None:
        self._alive = None
        super()._take_epoch()

    def _order(self, place: Place) -> Ids:
        """O(size) after a retirement and at the start of an epoch."""
        if self._alive is None:
            epoch = self._epoch_of()
            order = epoch.at(place.turn, 0, epoch.length)
            self._alive = order[~contains(self._examples.retired, order)] if self._gone else order
        return self._alive

    @property
    def drawable(self) -> int:
        place = self._place
        return self._live if place is None else self._window(place.step + place.cursor)

    @property
    def _order_size(self) -> int:
        return 0 if self._epoch is None else self._epoch.length - self._gone

    def _window(self, step: int) -> int:
        share = self._draw.share(step)
        assert share is not None, "a window has a share at every step"
        size = self._order_size
        # What rounding adds to a whole number must not open the window by one more.
        return min(max(math.ceil(share * size - 1e-9), self._batch_size), size)


def _narrow(keys: Float64s) -> Float32s:
    """As float32, and inf for none."""
    with np.errstate(over="ignore"):
        return np.where(np.isnan(keys), np.inf, keys).astype(np.float32)
