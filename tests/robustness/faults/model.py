"""What a run must have become, from nothing but how far it came: folded step by step, with no server and no disk.

The fold is the product's own (steelyard_server.runs.state), which the twin's tests hold to a model of its meaning; what
is at stake here is everything around it. The losses are a function of step and id, so that whatever was acknowledged is
known without having been written down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

import steelyard
from steelyard_server.core.events import LossesReported, RunCreated
from steelyard_server.runs.spec import parse_spec
from steelyard_server.runs.state import RunState
from tests.robustness.crash.losses import losses_of
from tests.robustness.faults.registry import Broken
from tests.robustness.faults.told import Told


class Model:
    """Of one run with a bound on its staleness, which one trainer at a time trains, and nobody takes back."""

    def __init__(self, name: str, fields: Mapping[str, Any], size: int) -> None:
        spec = parse_spec({"weigh": {"method": "uniform"}, **fields, "name": name, "dataset": "d"})
        assert isinstance(spec.staleness, int)
        self._name, self._staleness = name, spec.staleness
        self._state = RunState(RunCreated(spec.model_dump(mode="json"), size))
        self._reported = 0
        self._digests: list[int] = []
        self._waiting: dict[int, Any] = {}

    def check_told(self, told: Iterable[Told]) -> None:
        """Broken where a batch is another one than an undisturbed run's."""
        for one in told:
            # No further: what a trainer that is killed had not heard to be acknowledged may never have been reported.
            known = max(one.acknowledged, one.step - self._staleness)
            self._advance(drawn=one.step + 1, reported=known)
            if self._digests[one.step] != one.digest:
                raise Broken(
                    f"step {one.step} was served as {one.digest:016x}; undisturbed it is {self._digests[one.step]:016x}"
                )

    def check_state(self, run: steelyard.Run, held: int) -> None:
        """Broken where the run is not what it would be without a fault: a report lost, or counted twice, or another.

        All of its steps below `held` were acknowledged, and no later one was reported."""
        info = run.info()
        if info.closed_steps != held:
            raise Broken(f"the reports of {held} steps were acknowledged, and {info.closed_steps} are there")
        self._advance(drawn=info.next_step, reported=held)
        reported, expected = run.stats().reported_losses, self._state.counters.reported_losses
        if reported != expected:
            raise Broken(f"{reported} losses are counted; without the fault they were {expected}")
        column, calm = run.column("last_loss"), self._state.examples.columns["last_loss"]
        if not np.array_equal(column, calm, equal_nan=True):
            differ = np.flatnonzero(~((column == calm) | (np.isnan(column) & np.isnan(calm))))
            raise Broken(
                f"{len(differ)} examples have another last loss than without the fault: {differ[:5]} ..."
            )

    def _advance(self, drawn: int, reported: int) -> None:
        state = self._state
        while state.next_step < drawn or self._reported < reported:
            if self._reported < reported and self._reported < state.next_step:
                step = self._reported
                ids = self._waiting.pop(step)
                state.apply(LossesReported(step, 0, {"loss": losses_of(self._name, 0, step, ids)}))
                self._reported += 1
            else:
                event = state.draw()
                state.apply(event)
                self._digests.append(event.digest)
                self._waiting[event.step] = event.ids
            state.unsaved_history.clear()
