"""Weights that are computed over all rows at once, now and then, and drawn by until the next time.

A method is a `RefreshedDraw` with `weights`. They are written into a column that belongs to the run, which is saved,
rewound and forked with it; the tree follows from that column, the retired ids and the drawer's state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from steelyard_server.policies.draw.contract import Drawer, Examples, Float32s, Ids
from steelyard_server.policies.draw.engines.local import COARSE_MEAN, ByColumn, MassDraw
from steelyard_server.policies.draw.engines.sparse import SparseDrawer
from steelyard_server.policies.draw.rows import Float64s, Moment, Rows, unknown_share

WEIGHT = "own:weight"
"""The column of the weights. Nobody can upload one of that name: a colon is in no name of a column."""

# Where a weight is positive but too small for float32, it is drawn with the least mass that there is.
_LEAST = np.finfo(np.float32).tiny


class RefreshedDraw(MassDraw):
    """A draw by weights that are computed anew before the first draw, and then every `refresh_steps` steps.

    A row of weight 0 is not drawn until the next time, unless a `floor` above 0 gives it its share. Where nobody has a
    positive weight, all are drawn alike. Where sampling is 'distinct' and fewer have one than a batch takes, these are
    drawn for certain and the others fill it, all alike. Rows that came since weigh as much as the greatest. A weight is
    kept to 24 bits, one below 2^-28 of the greatest counts as that.
    """

    refresh_steps: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """Steps from one computation of the weights to the next; none: as many as give batch_size times the number of
    drawable examples, an epoch."""

    @abstractmethod
    def weights(self, rows: Rows, moment: Moment) -> Float64s:
        """The weight of each row, float64[rows.size], in any unit. NaN and what is negative count as 0, infinity as the
        greatest float64; what retired rows get does not matter.

        Pure: the same for the same arguments, on every machine (steelyard_server.core.exact has exp, log and power).
        """

    @property
    def own(self) -> tuple[str, ...]:
        return (WEIGHT,)

    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> Drawer:
        return RefreshedDrawer(self, examples, seed, batch_size, state)


class _Refresh(BaseModel):
    """`count` times the weights were computed, next for the draw of step `due`."""

    model_config = ConfigDict(extra="forbid")

    count: int = 0
    due: int = 0


class RefreshedDrawer(SparseDrawer):
    """A draw costs as much as by scores, a computation of the weights what the method takes and O(size)."""

    def __init__(
        self,
        draw: RefreshedDraw,
        examples: Examples,
        seed: int,
        batch_size: int,
        state: Mapping[str, Any] | None,
    ) -> None:
        self._draw = draw
        self._refresh = _Refresh() if state is None else _Refresh.model_validate(state["refresh"])
        by = ByColumn(WEIGHT, floor=draw.floor, sampling=draw.sampling)
        super().__init__(by, 0.0, examples, seed, batch_size, state)

    def prepare(self, step: int) -> None:
        if step >= self._refresh.due:
            self.refresh(step)

    def refresh(self, step: int) -> None:
        """Computes the weights anew. ValueError where the method's are of another shape; nothing has changed then."""
        examples = self._examples
        rows = Rows(examples.size, examples.retired, _read_only(examples.columns))
        weights = self._draw.weights(rows, Moment(step, self._refresh.count, self._seed))
        column = _scaled(weights, rows.live)
        examples.put(WEIGHT, np.arange(examples.size), column)
        live = examples.size - len(examples.retired)
        self._refresh = _Refresh(
            count=self._refresh.count + 1,
            due=step + (self._draw.refresh_steps or -(-live // self._batch_size) or 1),
        )
        self._spread = self._draw.floor > 0 or int(np.count_nonzero(column)) < self._least_rows
        self._rebuild()

    def changed(self, ids: Ids) -> None:
        """The weights do not change before they are computed again."""

    def get_state(self) -> Mapping[str, Any]:
        return {**super().get_state(), "refresh": self._refresh.model_dump(mode="json")}

    @property
    def _score(self) -> str | None:
        """The column whose numbers are the scores that were reported."""
        derived = self._draw.derived
        return derived[0].name if derived else None

    @property
    def never_reported(self) -> int | None:
        if self._score is None:
            return None
        unknown = np.isnan(self._examples.columns[self._score])
        return int(np.count_nonzero(unknown)) - int(np.count_nonzero(unknown[self._examples.retired]))

    def _never_reported_share(self, most: int) -> float | None:
        if self._score is None:
            return None
        return unknown_share(self._examples.columns[self._score], self._examples.retired, most)

    def _rebuild(self) -> None:
        # The greatest weight is 1 now, and what was greater before is forgotten: rows to come weigh as much as it.
        self._scale.greatest = 0.0
        self._scale.coarse_mean = COARSE_MEAN
        self._fit(0.0)
        self._tree.refill(self._fill)


def _read_only(columns: Mapping[str, Float32s]) -> Mapping[str, Float32s]:
    views = {name: values.view() for name, values in columns.items()}
    for view in views.values():
        view.flags.writeable = False
    return MappingProxyType(views)


def _scaled(weights: Float64s, live: npt.NDArray[np.bool_]) -> Float32s:
    """The weights as parts of the greatest, float32[size] in 0..1; 1 for all that are live where none is positive."""
    if np.shape(weights) != live.shape:
        raise ValueError(f"expected weights of shape {live.shape}, one for each row, got {np.shape(weights)}")
    known = np.where(live, np.nan_to_num(np.asarray(weights, np.float64), nan=0.0), 0.0)
    top = float(known.max(initial=0.0))
    if top <= 0.0:
        return live.astype(np.float32)
    return np.where(known > 0.0, np.maximum(known / top, _LEAST), 0.0).astype(np.float32)
