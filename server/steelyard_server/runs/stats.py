"""What a run can say about itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steelyard_server.policies.inputs import Input, explain, missing
from steelyard_server.policies.mix.drawer import MixDrawer
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.messages import MissingInput
from steelyard_server.runs.state import RunState
from steelyard_server.runs.tally import Tally


@dataclass(frozen=True, slots=True)
class RunStats:
    """Counts since the run was created; those of refused, duplicate and late reports since the server started."""

    next_step: int
    closed_steps: int
    folded_steps: int
    state_version: int
    served_ids: int
    reported_losses: int
    duplicate_reports: int
    late_reports: int
    refused_reports: int
    nonfinite_losses: int
    closed_by_timeout: int
    drawable: int
    never_reported: int | None
    effective_sample_ratio: float
    mean_loss: float
    journal_records: int
    connected_ranks: int
    oldest_step: int
    journal_bytes: int
    ungrouped: int
    group_shares: tuple[float, ...]
    missing_inputs: tuple[MissingInput, ...]


def stats_of(state: RunState, tally: Tally, connected: int, log: RunLog) -> RunStats:
    """O(size) where the draw has masses, else O(1)."""
    drawer = state.peek_drawer()
    return RunStats(
        next_step=state.next_step,
        closed_steps=state.closed_steps,
        folded_steps=state.folded_steps,
        state_version=state.state_version,
        served_ids=state.counters.served_ids,
        reported_losses=state.counters.reported_losses,
        duplicate_reports=tally.duplicate,
        late_reports=tally.late,
        refused_reports=tally.refused.total(),
        nonfinite_losses=state.counters.nonfinite_losses,
        closed_by_timeout=state.counters.closed_by_timeout,
        drawable=drawer.drawable,
        never_reported=drawer.never_reported,
        effective_sample_ratio=drawer.effective_sample_ratio(),
        mean_loss=_mean_loss(state),
        journal_records=log.journal.next_seq,
        connected_ranks=connected,
        oldest_step=log.oldest_step(),
        journal_bytes=log.journal.bytes_from(log.journal.first_seq()),
        ungrouped=drawer.ungrouped if isinstance(drawer, MixDrawer) else 0,
        group_shares=tuple(drawer.masses().tolist()) if isinstance(drawer, MixDrawer) else (),
        missing_inputs=tuple(missing_input(one, state.known_signals) for one in _missing(state)),
    )


def missing_input(one: Input, known: Sequence[str]) -> MissingInput:
    """What trainers and the owner are told of it; `known`: the signals that have come."""
    return MissingInput(one.name, explain(one, known), one.kind == "column")


def _missing(state: RunState) -> tuple[Input, ...]:
    """All that the policy reads and that has not come; losses only once they could have. O(size) a column."""
    columns = state.examples.columns
    empty = [one.name for one in state.inputs if one.kind == "column" and np.isnan(columns[one.name]).all()]
    waited = state.closed_steps > state.policy_since
    return tuple(one for one in missing(state.inputs, state.heard, empty) if waited or one.name != "loss")


def _mean_loss(state: RunState) -> float:
    """Mean of the finite losses of the last reported step; NaN where there is none."""
    for step in sorted(state.steps, reverse=True):
        record = state.steps[step]
        losses = record.signals.get("loss", np.empty(0, np.float32))
        finite = losses[np.isfinite(losses)]
        if record.closed and len(finite):
            return float(finite.mean())
    return math.nan
