"""Epochs that are chosen: what an epoch holds, and in which order, is decided at its start and held until its end.

The stream of epochs is continuous: a batch that meets the end of one goes on with the next, and the choice for that
one is made then, in `prepare`, from what is folded at that moment. A batch that goes through several epochs at once
makes one choice for all of them, since nothing was learned between. The choice is in own columns, so that a
checkpoint, a rewind and a fork take it along; from them and the place in the epoch all else is rebuilt.

Ids appended in the middle of an epoch come with the next one. Retired ones never come again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw.contract import Draw, Drawer, Drawn, Examples, Float32s, Ids
from steelyard_server.policies.draw.rows import Moment, Rows, contains

Float64s = npt.NDArray[np.float64]
_Rows = tuple[tuple[int, float, float], ...]
"""Some ids, each with its probability and its weight."""


class EpochDraw(Draw):
    """What draws that choose epochs have in common. `derived` and `static` are empty unless a method says otherwise."""

    @property
    def derived(self) -> tuple[Derived, ...]:
        return ()

    @property
    def static(self) -> tuple[str, ...]:
        return ()


class Epoch(ABC):
    """What one epoch holds, as its columns say: `length` places, which `distinct` ids take."""

    length: int
    distinct: int

    @abstractmethod
    def at(self, turn: int, start: int, stop: int) -> Ids:
        """The ids at places start..stop-1 of the order that `turn` names, int64[stop - start]."""

    @abstractmethod
    def copies(self, ids: Ids) -> npt.NDArray[np.int64]:
        """How many places each of `ids` takes, int64[m]; 0 where it is not in the epoch."""

    def weight(self, ids: Ids) -> Float32s | None:
        """What the method gives each of `ids`, float32[m]; None where that is 1."""
        return None


class Place(BaseModel):
    """Where in the stream the next batch begins: at place `cursor` of the epoch, after what is left of the one before.

    `choice` counts the choices and `turn` the orders; `step` is the one that the choice was made for. `rest` has the
    id, probability and weight of each that the epoch before still owes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    choice: int
    turn: int
    cursor: int
    step: int
    rest: _Rows = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Some ids of a batch, with the probability and the weight of each."""

    ids: Ids
    probability: Float64s
    weight: Float32s | None

    def rows(self) -> _Rows:
        weight = np.ones(len(self.ids), np.float32) if self.weight is None else self.weight
        return tuple(zip(self.ids.tolist(), self.probability.tolist(), weight.tolist(), strict=True))

    @classmethod
    def of(cls, rows: _Rows, *, weighed: bool) -> _Part:
        return cls(
            np.array([row[0] for row in rows], np.int64),
            np.array([row[1] for row in rows], np.float64),
            np.array([row[2] for row in rows], np.float32) if weighed else None,
        )


class EpochDrawer(Drawer):
    """A draw costs O(B), and length / live times as much where ids are retired; a choice O(size), once an epoch."""

    def __init__(
        self, examples: Examples, seed: int, batch_size: int, state: Mapping[str, Any] | None, *, weighs: bool
    ) -> None:
        self._examples = examples
        self._seed = seed
        self._batch_size = batch_size
        self._weighs = weighs
        self._place: Place | None = None
        self._epoch: Epoch | None = None
        self._gone = 0
        """How many places of the epoch belong to retired ids; `_gone_ids`, to how many of them."""
        self._gone_ids = 0
        if state:
            self._place = Place.model_validate(state)
            self._take_epoch()

    @abstractmethod
    def _choose(self, rows: Rows, moment: Moment) -> None:
        """Writes the choice for the next epoch into the own columns: at least one id that is not retired."""

    @abstractmethod
    def _read(self) -> Epoch:
        """The epoch that the own columns say."""

    # ---- drawing ----

    def prepare(self, step: int) -> None:
        place = self._place
        if not self._live or (place is not None and place.step == step):
            return
        if place is None:
            self._begin(Place(choice=0, turn=0, cursor=0, step=step))
            return
        alive = self._epoch_of().length - self._gone
        rest = len(self._of_rest(place).ids) if place.rest else 0
        if alive and rest + alive - place.cursor >= self._batch_size:
            return
        owed = self._owed(place)
        # One of which nothing is alive cannot fill what the rest does not.
        if not alive or len(owed) < self._batch_size:
            self._begin(Place(choice=place.choice + 1, turn=place.turn + 1, cursor=0, step=step, rest=owed))

    def draw(self, step: int, count: int | None = None) -> Drawn:
        if self._place is None or self._live == 0:
            raise ValueError(
                "no example may be drawn: all are retired"
                if not self._live
                else "expected `prepare` before a draw"
            )
        missing = self._batch_size if count is None else count
        parts, place = self._stream(self._place, missing)
        ids = np.concatenate([part.ids for part in parts])
        probability = np.concatenate([part.probability for part in parts])
        uniform = 1.0 / max(self.drawable, 1)
        weights = [part.weight for part in parts if part.weight is not None]
        return Drawn(
            ids,
            None if (probability == uniform).all() else probability,
            uniform,
            place.model_dump(mode="json"),
            np.concatenate(weights) if weights else None,
        )

    def changed(self, ids: Ids) -> None:
        pass

    def grew(self) -> None:
        pass

    def retired(self, ids: Ids) -> None:
        if self._epoch is not None:
            copies = self._epoch.copies(ids)
            self._gone += int(copies.sum())
            self._gone_ids += int(np.count_nonzero(copies))

    def get_state(self) -> Mapping[str, Any]:
        return {} if self._place is None else self._place.model_dump(mode="json")

    def set_draw_state(self, state: Mapping[str, Any]) -> None:
        self._place = Place.model_validate(state)

    @property
    def drawable(self) -> int:
        """Of this epoch; all that are not retired before the first."""
        return self._live if self._epoch is None else self._epoch.distinct - self._gone_ids

    def check(self) -> None:
        if self._place is None:
            return
        epoch, again = self._epoch_of(), self._read()
        assert 0 <= self._place.cursor <= epoch.length, (self._place, epoch.length)
        assert (epoch.length, epoch.distinct) == (again.length, again.distinct)
        turn = self._place.turn
        assert np.array_equal(epoch.at(turn, 0, epoch.length), again.at(turn, 0, epoch.length))
        assert self._gone == int(epoch.copies(self._examples.retired).sum())

    # ---- inside ----

    @property
    def _live(self) -> int:
        return self._examples.size - len(self._examples.retired)

    def _epoch_of(self) -> Epoch:
        assert self._epoch is not None, "an epoch is chosen with its place"
        return self._epoch

    def _begin(self, place: Place) -> None:
        rows = Rows(self._examples.size, self._examples.retired, self._examples.columns)
        self._choose(rows, Moment(place.step, place.choice, self._seed))
        self._place = place
        self._take_epoch()

    def _take_epoch(self) -> None:
        self._epoch = self._read()
        copies = self._epoch.copies(self._examples.retired)
        self._gone, self._gone_ids = int(copies.sum()), int(np.count_nonzero(copies))

    def _stream(self, place: Place, missing: int) -> tuple[list[_Part], Place]:
        """The next `missing` of the stream, and the place behind them."""
        parts = []
        if place.rest:
            part = self._of_rest(place, missing)
            parts.append(part)
            missing -= len(part.ids)
            # Those of the rest that are retired by now are passed over with those that are drawn.
            left = self._of_rest(place).rows()[len(part.ids) :]
            place = place.model_copy(update={"rest": left})
        while missing:
            ids, place = self._take(place, missing)
            parts.append(self._part(ids))
            missing -= len(ids)
        return parts, place

    def _owed(self, place: Place) -> _Rows:
        """What is left before the epoch's end; a batch at most."""
        owed = self._of_rest(place).rows()
        epoch = self._epoch_of()
        while epoch.length > self._gone and len(owed) < self._batch_size and place.cursor < epoch.length:
            ids, place = self._take(place, self._batch_size - len(owed))
            owed += self._part(ids).rows()
        return owed

    def _of_rest(self, place: Place, count: int | None = None) -> _Part:
        retired = self._examples.retired
        rest = _Part.of(place.rest, weighed=self._weighs)
        at = np.flatnonzero(~contains(retired, rest.ids))[:count]
        return _Part(rest.ids[at], rest.probability[at], None if rest.weight is None else rest.weight[at])

    def _part(self, ids: Ids) -> _Part:
        epoch = self._epoch_of()
        copies = epoch.copies(ids)
        if int(copies.max(initial=1)) == 1 and epoch.length == epoch.distinct:
            probability = np.full(len(ids), 1.0 / max(self.drawable, 1))
        else:
            probability = copies / np.float64(max(epoch.length - self._gone, 1))
        return _Part(ids, probability, epoch.weight(ids) if self._weighs else None)

    def _take(self, place: Place, count: int) -> tuple[Ids, Place]:
        """The next ids of the epoch that are not retired, at most `count` and at most to its end, and the place behind
        them; where it has ended, from its next turn."""
        epoch = self._epoch_of()
        live = epoch.length - self._gone
        if live <= 0:
            raise ValueError("no example of this epoch may be drawn: all of them are retired")
        if place.cursor >= epoch.length:
            place = place.model_copy(update={"turn": place.turn + 1, "cursor": 0})
        # As many places as hold `count` live ids on average: few looks, also where nearly all are retired.
        wide = -(-count * epoch.length // live)
        stop = min(place.cursor + wide, epoch.length)
        ids = epoch.at(place.turn, place.cursor, stop)
        if self._gone:
            kept = np.flatnonzero(~contains(self._examples.retired, ids))[:count]
            if len(kept) == count:
                stop = place.cursor + int(kept[-1]) + 1
            ids = ids[kept]
        return ids, place.model_copy(update={"cursor": stop})
