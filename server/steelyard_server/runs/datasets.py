"""Datasets as the runs see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from steelyard_server.core.events import ColumnSet, DatasetGrown, Event, Float32s, Ids, IdsRetired
from steelyard_server.history import registry
from steelyard_server.runs.state import RunState

MAX_SIZE = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """A dataset as its owner sees it; `retired` counts ids."""

    name: str
    size: int
    retired: int
    fingerprint: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A dataset as it is now: its row and its retired ids, sorted and unique. Replaced, never changed."""

    row: registry.Dataset
    retired: Ids

    @property
    def info(self) -> DatasetInfo:
        row = self.row
        return DatasetInfo(row.name, row.size, len(self.retired), row.fingerprint, row.columns)

    @property
    def size(self) -> int:
        return self.row.size

    @property
    def drawable(self) -> int:
        return self.row.size - len(self.retired)


def news_for(state: RunState, dataset: Dataset, column: Callable[[str], Float32s]) -> Sequence[Event]:
    """What the dataset has become and the run does not know yet. O(size) for each column that the policy reads."""
    events: list[Event] = []
    if dataset.size > state.examples.size:
        events.append(DatasetGrown(dataset.size))
    retired = np.setdiff1d(dataset.retired, state.examples.retired)
    if len(retired):
        events.append(IdsRetired(retired))
    for name in state.policy.static:
        if name in dataset.row.columns:
            events += _changed_values(name, state.examples.columns[name], column(name))
    return events


def _changed_values(name: str, known: Float32s, values: Float32s) -> list[Event]:
    mine = np.full(len(values), np.nan, np.float32)
    mine[: len(known)] = known
    changed = np.flatnonzero((mine != values) & ~(np.isnan(mine) & np.isnan(values)))
    return [ColumnSet(name, changed, values[changed])] if len(changed) else []
