"""What a run does for its owner: questions, observations, policy, bookmarks, going back, forking.

Belongs to the run's own thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from steelyard_server.core.events import AttemptBegan, Bookmarked, Float32s, Ids, SignalsObserved
from steelyard_server.runs import reports, rules
from steelyard_server.runs.audit import Unweighed
from steelyard_server.runs.changes import changed_policy, policy_events
from steelyard_server.runs.errors import Exists, Invalid, Missing, Superseded, Unready
from steelyard_server.runs.journaled import Journaled
from steelyard_server.runs.messages import MissingInput, Slice
from steelyard_server.runs.retention import Kept
from steelyard_server.runs.serving import Serving
from steelyard_server.runs.spec import RunSpec
from steelyard_server.runs.state import HistoryEntry
from steelyard_server.runs.stats import RunStats, missing_input, stats_of
from steelyard_server.runs.steps import StepRecord
from steelyard_server.runs.weighing import draw_weight

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run as its owner sees it."""

    spec: RunSpec
    next_step: int
    closed_steps: int
    oldest_step: int
    dataset_size: int
    attempt: str
    bookmarks: Mapping[str, int]
    missing_inputs: tuple[MissingInput, ...] = ()
    """Signals of which its trainers are told."""


class Ownership:
    """Each method changes everything that it promises, durably, or raises and changes nothing."""

    def __init__(self, run: Journaled, serving: Serving) -> None:
        self._run = run
        self._serving = serving

    def stats(self) -> RunStats:
        return stats_of(self._run.state(), self._serving.tally, len(self._serving.ranks), self._run.log)

    def info(self) -> RunInfo:
        """As of what is durable: a trainer that keeps a step relies on it."""
        self._run.settle()
        state = self._run.state()
        return RunInfo(
            state.spec,
            state.next_step,
            state.closed_steps,
            self._run.log.oldest_step(),
            state.examples.size,
            state.attempts.current,
            dict(state.bookmarks),
            tuple(missing_input(one, state.known_signals) for one in state.missing_signals()),
        )

    def kept(self) -> Kept:
        """What is kept of the run's past. Waits until everything written is durable."""
        self._run.settle()
        return self._run.log.kept(self._run.state())

    def history(self, ids: Ids) -> list[list[tuple[int, float]]]:
        state = self._run.state()
        self._check_ids(ids)
        waiting = [
            HistoryEntry(
                step,
                record.drawn.ids[record.reported].astype(np.uint32),
                record.signals["loss"][record.reported],
            )
            for step, record in sorted(state.steps.items())
            if step >= state.folded_steps and state.spec.staleness != "any" and record.reported.any()
        ]
        return self._run.log.history(ids, [*state.unsaved_history, *waiting])

    def column(self, name: str, ids: Ids | None) -> Float32s:
        state = self._run.state()
        column = state.examples.columns.get(name)
        if column is None:
            known = ", ".join(sorted(state.examples.columns)) or "none"
            raise Missing(f"run {self._run.name!r} keeps no column {name!r}; its policy reads: {known}")
        if ids is None:
            return column.copy()
        self._check_ids(ids)
        return column[ids]

    def batch(self, step: int) -> Slice | Unweighed:
        """What was served at `step`. Its weights where it is in memory or they follow from the draw."""
        state = self._run.state()
        self._serving.await_durable(step)
        # Not from memory, where a fork also has steps of its parent.
        drawn = self._run.log.journal.drawn(step)
        if drawn is None:
            raise Missing(f"run {self._run.name!r} holds no batch of step {step}: {self._retained()}")
        rule, record = state.rule_of(step), state.steps.get(step)
        served = Slice(drawn, 0, len(drawn.ids), None, state.examples.size, None)
        if record is None and not (rules.at_draw(rule) and not rules.needs_fold(rule)):
            # It left memory at a draw, with all of its reports behind it; both may still be on their way to the disk.
            self._serving.await_durable(state.next_step - 1)
            return Unweighed(served, rule, state.spec.seed, state.spec.report_window)
        if record is None or rules.at_draw(rule):
            return replace(served, weight=draw_weight(rule, record or StepRecord.of(drawn), state.spec.seed))
        if not rules.is_weighed(rule, record):
            return served
        return replace(served, weight=self._serving.weights.of(state, record))

    def _retained(self) -> str:
        oldest, after = self._run.log.oldest_step(), self._run.state().next_step
        if oldest >= after:
            return "none is drawn yet"
        held = any(step < oldest for step in self._run.state().bookmarks.values())
        older = ", and of older ones some near bookmarks" if held else ""
        return f"the steps {oldest}..{after - 1} are retained{older}"

    def observe(self, step: int | None, ids: Ids, signals: Mapping[str, Float32s]) -> None:
        state = self._run.state()
        if step is not None and step >= state.next_step:
            raise Unready(
                f"expected a step below {state.next_step}, the next to draw, or none, for what the next draw shall "
                f"know; got {step}"
            )
        reports.check_signals(signals, "the observation")
        count = len(next(iter(signals.values())))
        if count != len(ids):
            raise Invalid(f"expected one value for each of {len(ids)} ids in the observation; got {count}")
        self._check_ids(ids)
        reports.check_values(state, signals, "the observation")
        self._run.write_and_wait([SignalsObserved(step, ids, signals)])

    def change_policy(
        self,
        draw: Mapping[str, Any] | None,
        weigher: Mapping[str, Any] | None,
        mix: Mapping[str, Any] | None = None,
    ) -> RunInfo:
        state = self._run.state()
        policy = changed_policy(state, draw, weigher, mix)
        if policy.canonical() != state.policy.canonical():
            self._run.settle()
            events = policy_events(state, policy, self._run.log, None)
            self._run.write_and_wait(events)
            self._run.take_news()
        return self.info()

    def bookmark(self, name: str, step: int | None) -> int:
        state = self._run.state()
        if not 1 <= len(name) <= 128:
            raise Invalid(f"expected a bookmark name of 1..128 characters; got {len(name)}")
        at = state.closed_steps if step is None else step
        self._run.check_step(at)
        held = state.bookmarks.get(name, at)
        if held != at:
            raise Exists(f"bookmark {name!r} holds step {held}; got step {at}; delete it first to move it")
        if name not in state.bookmarks:
            self._run.write_and_wait([Bookmarked(name, at)])
        return at

    def delete_bookmark(self, name: str) -> None:
        if name in self._run.state().bookmarks:
            self._run.write_and_wait([Bookmarked(name, None)], frees=True)

    def _step_of(self, to: int | str) -> int:
        state = self._run.state()
        if isinstance(to, int):
            step = to
        elif to in state.bookmarks:
            step = state.bookmarks[to]
        else:
            known = ", ".join(sorted(state.bookmarks)) or "none"
            raise Missing(f"run {self._run.name!r} has no bookmark {to!r}; its bookmarks: {known}")
        self._run.check_step(step)
        return step

    def rewind(self, to: int | str) -> RunInfo:
        step = self._step_of(to)
        self._serving.end_streams(
            Superseded(f"run {self._run.name!r} was rewound to step {step}; this trainer must stop")
        )
        # The attempt is over: a trainer of it that comes back would go on from a state that is undone.
        self._run.rewind(step, AttemptBegan("", 0, step))
        return self.info()

    def hold(self, at: int | str) -> tuple[int, Callable[[], None]]:
        """The step of `at`, which can be returned to on any thread, beside the run, until the answer is called."""
        step = self._step_of(at)
        self._run.settle()
        return step, self._run.hold_past()

    def _check_ids(self, ids: Ids) -> None:
        size = self._run.state().examples.size
        bad = np.flatnonzero((ids < 0) | (ids >= size))
        if len(bad):
            raise Invalid(f"expected ids 0..{size - 1}; got {ids[bad[0]]} at position {bad[0]}")
