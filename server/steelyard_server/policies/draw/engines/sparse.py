"""A draw by a column in which one number means: not drawn. It never comes to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard_server.core.sampling import Sampling
from steelyard_server.policies.draw.contract import Examples, Ids
from steelyard_server.policies.draw.engines.local import ByColumn, ScoredDrawer
from steelyard_server.policies.draw.rows import contains


class SparseDrawer(ScoredDrawer):
    """Rows whose number is exactly `excluded` have no mass, unless `spread`: then they have the least one.

    It is spread where a floor must reach them, and from when too few others are left for a batch: what has no weight
    then fills it, all alike, and where nobody has a weight all are drawn alike.
    """

    def __init__(
        self,
        by: ByColumn,
        excluded: float,
        examples: Examples,
        seed: int,
        batch_size: int,
        state: Mapping[str, Any] | None,
    ) -> None:
        self._excluded = excluded
        self._spread = by.floor > 0 if state is None else bool(state["spread"])
        self._least_rows = batch_size if by.sampling is Sampling.DISTINCT else 1
        super().__init__(by, examples, seed, batch_size, None if state is None else state["scale"])

    def changed(self, ids: Ids) -> None:
        excluded = (self._scores[ids] == self._excluded) & (not self._spread)
        turned = ((self._tree.leaves(ids) == 0) != excluded) & ~contains(self._examples.retired, ids)
        if turned.any():
            # One that may be drawn again gets any leaf first, and its own with all the others.
            self._tree.set(ids[turned], np.where(excluded[turned], 0, 1).astype(np.uint32))
        super().changed(ids)
        self._spread_if_few()

    def grew(self) -> None:
        super().grew()
        self._spread_if_few()

    def retired(self, ids: Ids) -> None:
        super().retired(ids)
        self._spread_if_few()

    def get_state(self) -> Mapping[str, Any]:
        return {"scale": super().get_state(), "spread": self._spread}

    def spread(self) -> None:
        """From now on, until weights are computed again, those that have none fill what others leave. O(size)."""
        if not self._spread:
            self._spread = True
            self._tree.refill(self._fill)

    def _spread_if_few(self) -> None:
        if self._tree.live < self._least_rows:
            self.spread()

    def _fill(self, start: int, leaves: npt.NDArray[np.uint32]) -> None:
        super()._fill(start, leaves)
        if not self._spread:
            leaves[self._scores[start : start + len(leaves)] == self._excluded] = 0
