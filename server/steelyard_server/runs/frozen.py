"""A run's state as it was at one moment, for a checkpoint that is written while the run goes on.

Small things are copied at that moment, columns are not (frozen_column.py): it costs the run no more than the steps in
flight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steelyard_server.runs import snapshot
from steelyard_server.runs.frozen_column import FrozenColumn
from steelyard_server.runs.snapshot import Snapshot
from steelyard_server.runs.state import HistoryEntry, RunState


@dataclass(frozen=True, slots=True, eq=False)
class Frozen:
    """The state before journal record `seq`, with the chain there. `saved` of it follows from the flags in `dirty`
    (bool[chunks] a column) and the checkpoint before; `history` is what that one lacks."""

    seq: int
    step: int
    chain: bytes
    rest: Snapshot
    columns: Mapping[str, FrozenColumn]
    dirty: Mapping[str, npt.NDArray[np.bool_]]
    history: Sequence[HistoryEntry]

    def begin(self, state: RunState) -> None:
        """From here on `state`, of which this was made just now, changes. Its flags tell what changed since."""
        state.frozen = self.columns
        for flags in state.dirty.values():
            flags[:] = False

    def end(self, state: RunState, *, saved: bool) -> None:
        """The checkpoint is durable, or was given up."""
        state.frozen = {}
        if saved:
            del state.unsaved_history[: len(self.history)]
            return
        for name, flags in self.dirty.items():
            # A column that is another one by now is not saved at all yet; one that grew has its new part marked.
            if name in state.dirty:
                known = min(len(flags), len(state.dirty[name]))
                state.dirty[name][:known] |= flags[:known]


def freeze(state: RunState, seq: int, chain: bytes) -> Frozen:
    """`state` as of now, which is before journal record `seq`. O(steps in flight)."""
    return Frozen(
        seq,
        state.next_step,
        chain,
        snapshot.take(state, copy=True),
        {name: FrozenColumn(values) for name, values in state.examples.columns.items()},
        {name: flags.copy() for name, flags in state.dirty.items()},
        tuple(state.unsaved_history),
    )
