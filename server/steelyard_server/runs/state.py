"""The state of a run and its fold over the journal: state(n+1) = apply(state(n), event(n)).

Pure: no I/O, no clock. `draw` makes the next BatchDrawn without changing what the journal does not know: everything
that it folds on the way, `apply` of that same event folds again in a replay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard import weigh, wire
from steelyard_server.core.events import (
    AttemptBegan,
    BatchDrawn,
    Bookmarked,
    ColumnSet,
    DatasetGrown,
    Event,
    Float32s,
    Ids,
    IdsRetired,
    LossesReported,
    PolicyChanged,
    RunCreated,
    SignalsObserved,
    StepClosed,
)
from steelyard_server.policies.columns import SERVED, ascending
from steelyard_server.policies.draw import Drawer, Examples
from steelyard_server.policies.inputs import Input, missing, misspelt
from steelyard_server.policies.mix.drawer import MixDrawer
from steelyard_server.policies.policy import Policy
from steelyard_server.runs import rules
from steelyard_server.runs.frozen_column import FrozenColumn
from steelyard_server.runs.spec import RunSpec
from steelyard_server.runs.steps import Observation, StepRecord

COLUMN_CHUNK = 65536
PATIENCE = 16
"""Closed steps under a policy after which a signal that it reads and that never came is told of."""
_MOST_HEARD = 64
"""Signals whose names are kept; they come from trainers."""


@dataclass(slots=True)
class Counters:
    """What a run has done since it was created."""

    served_ids: int = 0
    reported_losses: int = 0
    nonfinite_losses: int = 0
    closed_by_timeout: int = 0
    closed_by_owner: int = 0
    expired_steps: int = 0


@dataclass(slots=True)
class Attempts:
    """The launches of the training job, newest last. Tokens of older ones are remembered to refuse them."""

    tokens: list[str] = field(default_factory=list)
    world_size: int = 0
    start_step: int = 0

    @property
    def current(self) -> str:
        return self.tokens[-1] if self.tokens else ""


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What a weigh rule that remembers has kept of the steps from `since` on, the first under it."""

    since: int
    past: rules.Past


@dataclass(slots=True, eq=False)
class HistoryEntry:
    """Folded losses on their way to the per-example history: one number per id (uint32[n]), in fold order."""

    step: int
    ids: npt.NDArray[np.uint32]
    losses: Float32s


class UndrawableError(ValueError):
    """The policy cannot draw from the examples as they are; the state is as it was."""


class RunState:
    """Everything that determines the batches to come. Single-threaded."""

    def __init__(self, created: RunCreated, columns: Mapping[str, Float32s] | None = None) -> None:
        """`columns` are those of a saved state, which this one takes over as saved; all that the policy reads."""
        self.spec = RunSpec.model_validate(dict(created.spec))
        self._take_policy(self.spec.policy)
        self.examples = Examples(created.dataset_size, np.empty(0, np.int64), {}, self._before_put)
        self.next_step = 0
        self.closed_steps = 0
        self.folded_steps = 0
        self.folded_reports = 0
        self.steps: dict[int, StepRecord] = {}
        self.observed: list[Observation] = []
        self.weighers: list[tuple[int, Mapping[str, Any]]] = [(0, self.spec.weigh)]
        # Of the rule in force at the last step drawn, and of that at the last one closed: they may be two.
        self.drawn_memory: Memory | None = None
        self.closed_memory: Memory | None = None
        self._rules: dict[int, weigh.Rule] = {}
        self.heard: list[str] = []
        """The signals that have come with a finite value, in a report or an observation; whether they are read or
        not."""
        self.policy_since = 0
        self.attempts = Attempts()
        self.bookmarks: dict[str, int] = {}
        self.counters = Counters()
        self.unsaved_history: list[HistoryEntry] = []
        self.dirty: dict[str, npt.NDArray[np.bool_]] = {}
        self.frozen: Mapping[str, FrozenColumn] = {}
        if columns is None:
            self._add_columns()
        else:
            self._take_columns(columns)
        self._drawer: Drawer | None = None
        self._peeked: Drawer | None = None
        self.drawer_state: Mapping[str, Any] | None = None

    def _take_policy(self, policy: Policy) -> None:
        self.policy = policy
        # Kept, since every step asks for them several times.
        self.derived = policy.derived
        self.listens = policy.listens
        self.reads_reports = policy.reads_reports
        self.inputs = policy.inputs

    @property
    def drawer(self) -> Drawer:
        """Built by the first event that needs it, never by a query: its state depends on when that is."""
        if self._drawer is None:
            self._drawer = self.peek_drawer()
            self._peeked, self.drawer_state = None, None
        return self._drawer

    # ---- what the actor asks ----

    @property
    def state_version(self) -> int:
        """How much the next draw knows. One that reads no reports does not depend on when they come, nor does this."""
        if not self.reads_reports:
            return 0
        return self.folded_reports if self.spec.staleness == "any" else self.folded_steps

    def awaited_step(self) -> int | None:
        """The step that must be closed before the next draw; None when the next draw need not wait."""
        if not self.reads_reports or self.spec.staleness == "any":
            return None
        return self.closed_steps if self.closed_steps < self.next_step - self.spec.staleness else None

    def obstacle(self) -> str | None:
        """Why the policy cannot draw the next batch, or None."""
        drawable = self.examples.size - len(self.examples.retired)
        if self.policy.mix is not None and drawable:
            # Asked before anything is folded: a draw that failed behind that would leave a trace that no event tells.
            drawer = self.peek_drawer()
            assert isinstance(drawer, MixDrawer)
            drawable -= drawer.ungrouped
            if not drawable:
                return f"no example is in a group: column {self.policy.mix.group!r} has none for those that are left"
        return self.policy.too_small(drawable, self.spec.batch_size)

    def missing_signals(self) -> tuple[Input, ...]:
        """Those that the policy reads and that have not come, so that trainers should hear of it: a number of steps
        was closed without, or the name is one that came, misspelt."""
        late = self.closed_steps >= self.policy_since + PATIENCE
        return tuple(
            one
            for one in missing(self.inputs, self.heard, ())
            if late or misspelt(one.name, self.known_signals)
        )

    @property
    def known_signals(self) -> list[str]:
        """Every report has losses."""
        return ["loss", *self.heard]

    def peek_drawer(self) -> Drawer:
        """A drawer to ask, not to draw from: the run's own, or what will be that if no column changes before. O(size)
        the first time."""
        if self._drawer is not None:
            return self._drawer
        if self._peeked is None:
            self._peeked = self.policy.drawer(
                self.examples, seed=self.spec.seed, batch_size=self.spec.batch_size, state=self.drawer_state
            )
        return self._peeked

    @property
    def built_drawer(self) -> Drawer | None:
        """The drawer if there is one; asking builds none."""
        return self._drawer or self._peeked

    def get_drawer_state(self) -> Mapping[str, Any] | None:
        """None while no event has needed the drawer."""
        return self._drawer.get_state() if self._drawer is not None else self.drawer_state

    def draw(self) -> BatchDrawn:
        """The next batch; it counts as drawn once it is applied. The only trace of asking is the fold that applying it
        makes as well.

        UndrawableError where the policy cannot draw one (`obstacle`). Whatever else is raised comes from a method,
        behind the fold: no event tells of that, so the state is of no use any more.
        """
        if (obstacle := self.obstacle()) is not None:
            raise UndrawableError(obstacle)
        step = self.next_step
        self._fold_for_draw(step)
        self.drawer.prepare(step)
        drawn = self.drawer.draw(step)
        return BatchDrawn(
            step=step,
            ids=drawn.ids,
            probability=drawn.probability,
            uniform_probability=drawn.uniform_probability,
            state_version=self.state_version,
            digest=wire.batch_digest(step, drawn.ids),
            draw_state=drawn.draw_state,
            weight=drawn.weight,
        )

    def weigher_of(self, step: int) -> Mapping[str, Any]:
        """The weigh rule of a drawn step: that of the policy it was drawn under."""
        return self.weigher_since(step)[1]

    def weigher_since(self, step: int) -> tuple[int, Mapping[str, Any]]:
        """The step since when the weigh rule of a drawn step is in force, and the rule."""
        newest = self.weighers[-1]
        if newest[0] <= step:
            return newest
        older: tuple[int, Mapping[str, Any]] = next(one for one in reversed(self.weighers) if one[0] <= step)
        return older

    def rule_of(self, step: int) -> weigh.Rule:
        """As weigher_of."""
        since, config = self.weigher_since(step)
        if since == self.weighers[-1][0]:
            return self.policy.weigh
        if since not in self._rules:
            self._rules[since] = weigh.parse(config)
        return self._rules[since]

    def weights_wait_for(self, step: int) -> list[int]:
        """The steps that are not closed and must be before a drawn one that is weighed by its losses has weights."""
        first = self.closed_steps if self.rule_of(step).remembers else step
        return [
            number
            for number in range(first, step + 1)
            if (record := self.steps.get(number)) is not None and not record.closed
        ]

    def first_unreported(self, positions_of: Callable[[int], tuple[int, int]], start: int) -> int:
        """The first open step from `start` on of which `positions_of(batch size)`, an offset and a count, is not wholly
        reported; steps no longer in memory are closed."""
        step = max(start, min(self.steps, default=self.next_step))
        while (record := self.steps.get(step)) is not None:
            offset, count = positions_of(len(record.reported))
            if not record.closed and not record.reported[offset : offset + count].all():
                return step
            step += 1
        return step

    # ---- the fold ----

    def apply(self, event: Event) -> None:
        match event:
            case BatchDrawn():
                self._apply_drawn(event)
            case LossesReported():
                self._apply_reported(event)
            case SignalsObserved():
                self._apply_observed(event)
            case StepClosed():
                self._apply_closed(event)
            case PolicyChanged():
                self._apply_policy(event)
            case ColumnSet():
                self._apply_column(event)
            case DatasetGrown():
                self._apply_growth(event)
            case IdsRetired():
                self._apply_retired(event)
            case AttemptBegan():
                self._apply_attempt(event)
            case Bookmarked(name, None):
                self.bookmarks.pop(name, None)
            case Bookmarked(name, int(step)):
                self.bookmarks[name] = step
            case RunCreated():
                raise ValueError("a journal holds one RunCreated, its first record; got another one")

    def _apply_drawn(self, event: BatchDrawn) -> None:
        if event.step != self.next_step:
            raise ValueError(
                f"expected the batch of step {self.next_step} next in the journal, got {event.step}"
            )
        self._fold_for_draw(event.step)
        self.drawer.prepare(event.step)
        self.drawer.set_draw_state(event.draw_state)
        record = self.steps[event.step] = StepRecord.of(event)
        self.next_step += 1
        rule = self.policy.weigh
        for name in rule.columns:
            record.columns[name] = self.examples.columns[name][event.ids]
        if rule.remembers and rules.at_draw(rule):
            self.drawn_memory = self._weigh(record, self.drawn_memory)
        self.counters.served_ids += len(event.ids)
        self._fold_served(event.ids)
        self._expire(event.step - self.spec.report_window)

    def _apply_reported(self, event: LossesReported) -> None:
        record = self.steps[event.step]
        losses = event.signals["loss"]
        at = slice(event.offset, event.offset + len(losses))
        # Mostly all are: then nothing is picked.
        new = ... if record.is_news(event.offset, len(losses)) else ~record.reported[at]
        fresh = losses[new]
        self.counters.reported_losses += len(fresh)
        self.counters.nonfinite_losses += len(fresh) - int(np.count_nonzero(np.isfinite(fresh)))
        record.take(event.offset, event.signals)
        self._hear(event.signals)
        if self.spec.staleness == "any":
            signals = {name: values[new] for name, values in event.signals.items()}
            self._fold(event.step, record.drawn.ids[at][new], signals)
        self._advance()

    def _hear(self, signals: Mapping[str, Float32s]) -> None:
        for name, values in signals.items():
            if name in self.heard or not np.isfinite(values).any():
                continue
            if len(self.heard) < _MOST_HEARD or any(name == one.name for one in self.inputs):
                self.heard.append(name)

    def _apply_observed(self, event: SignalsObserved) -> None:
        self._hear(event.signals)
        if event.step is None:
            self._fold(self.next_step, event.ids, event.signals)
        elif self.spec.staleness == "any":
            self._fold(event.step, event.ids, event.signals)
        else:
            self.observed.append(Observation(event.step, event.ids, event.signals))
            self._advance()

    def _apply_closed(self, event: StepClosed) -> None:
        record = self.steps.get(event.step)
        if record is not None and not record.closed:
            record.closed = True
            if event.reason == "timeout":
                self.counters.closed_by_timeout += 1
            else:
                self.counters.closed_by_owner += 1
            self._advance()

    def _apply_policy(self, event: PolicyChanged) -> None:
        before, state = self.policy, self.get_drawer_state()
        self.spec = self.spec.model_copy(update=dict(event.policy))
        self._take_policy(self.spec.policy)
        self.weighers.append((self.next_step, self.spec.weigh))
        self.policy_since = self.next_step
        self._rules.clear()
        if not self.policy.draws_as(before):
            inherited = self.policy.inherited(before, state)
            for name in before.own if inherited is None else ():
                del self.examples.columns[name], self.dirty[name]
            self._drawer, self._peeked, self.drawer_state = None, None, inherited
        self._add_columns()
        self._drop_columns()
        self._advance()

    def _apply_column(self, event: ColumnSet) -> None:
        column = self.examples.columns.get(event.name)
        if column is None:
            return
        drawer = None
        if event.name not in self.policy.only_weighed:
            # One that waits in a snapshot as its state must hear of it too; one not needed yet reads it later.
            drawer = self.drawer if self.get_drawer_state() is not None else None
            self._peeked = None
        self._keep(event.name, event.ids)
        column[event.ids] = event.values
        self._mark(event.name, event.ids)
        if drawer is not None:
            drawer.changed(event.ids)

    def _apply_growth(self, event: DatasetGrown) -> None:
        drawer = self.drawer
        added = event.size - self.examples.size
        self.examples.size = event.size
        for name in list(self.examples.columns):
            # Columns are the state's own, and given to nobody but a save under way.
            alone = not self._is_frozen(name)
            self.examples.columns[name] = _longer(self.examples.columns[name], added, in_place=alone)
            flags = np.ones(-(-event.size // COLUMN_CHUNK), np.bool_)
            flags[: len(self.dirty[name]) - 1] = self.dirty[name][:-1]
            self.dirty[name] = flags
        drawer.grew()

    def _apply_retired(self, event: IdsRetired) -> None:
        drawer = self.drawer
        new = np.setdiff1d(event.ids, self.examples.retired)
        self.examples.retired = np.union1d(self.examples.retired, new)
        drawer.retired(new)

    def _apply_attempt(self, event: AttemptBegan) -> None:
        self.attempts.tokens = [token for token in self.attempts.tokens if token != event.token] + [
            event.token
        ]
        self.attempts.world_size = event.world_size
        self.attempts.start_step = event.start_step
        self.close_below(event.start_step)

    def close_below(self, start: int) -> None:
        """Nobody will report steps below `start` any more: whoever trained them is gone."""
        for step, record in self.steps.items():
            if step < start and not record.closed:
                record.closed = True
        self._advance()

    # ---- folding reports ----

    def _fold_for_draw(self, step: int) -> None:
        """Folds exactly the reports that a draw of `step` may know."""
        if self.reads_reports and isinstance(self.spec.staleness, int):
            self._fold_steps(step - self.spec.staleness)

    def _advance(self) -> None:
        """Moves the closed mark; a draw that reads no reports has them folded at once."""
        while (record := self.steps.get(self.closed_steps)) is not None and record.closed:
            rule = self.rule_of(self.closed_steps)
            if rule.remembers and not rules.at_draw(rule):
                self.closed_memory = self._weigh(record, self.closed_memory)
            self.closed_steps += 1
        if not self.reads_reports or self.spec.staleness == "any":
            self._fold_steps(self.closed_steps)

    def _weigh(self, record: StepRecord, memory: Memory | None) -> Memory | None:
        """Has a rule that remembers weigh the next step; what it remembers then. Where it fails, it has forgotten
        nothing, and the step has no weights."""
        step, rule, seed = record.drawn.step, self.rule_of(record.drawn.step), self.spec.seed
        since = self._weighed_alike_since(step)
        past = memory.past if memory is not None and memory.since == since else None
        try:
            weights = rules.made(rule, record, seed, past)
            if rules.at_draw(rule) or record.reported.any():
                past = rules.remembered(rule, record, seed, past)
        except rules.RuleFailed as failure:
            record.failure = str(failure)
        else:
            record.weights = weights
        return None if past is None else Memory(since, past)

    def _weighed_alike_since(self, step: int) -> int:
        """The first of the steps up to a drawn one that its rule weighs without a break."""
        at = max(number for number, (since, _) in enumerate(self.weighers) if since <= step)
        while at and self.weighers[at - 1][1] == self.weighers[at][1]:
            at -= 1
        return self.weighers[at][0]

    def _fold_steps(self, stop: int) -> None:
        """Folds the closed steps below `stop`, in step order, each with what was observed as of it."""
        while self.folded_steps < min(stop, self.closed_steps):
            step = self.folded_steps
            record = self.steps.get(step)
            if record is not None and not record.folded and self.spec.staleness != "any":
                at = record.reported if record.missing else ...
                signals = {name: values[at] for name, values in record.signals.items()}
                self._fold(step, record.drawn.ids[at], signals)
                record.folded = True
            self.folded_steps += 1
            self._fold_observed(step)
        self._fold_observed(self.folded_steps - 1)

    def _fold_observed(self, upto: int) -> None:
        if not self.observed:
            return
        due = [seen for seen in self.observed if seen.step <= upto]
        if due:
            self.observed = [seen for seen in self.observed if seen.step > upto]
            for seen in due:
                self._fold(seen.step, seen.ids, seen.signals)

    def _fold(self, step: int, ids: Ids, signals: Mapping[str, Float32s]) -> None:
        if not len(ids):
            return
        self.folded_reports += 1
        if "loss" in signals and self.spec.history_size:
            self.unsaved_history.append(HistoryEntry(step, ids.astype(np.uint32), signals["loss"]))
        self._fold_columns(ids, signals)
        if heard := [name for name in self.listens if name in signals]:
            finite = {name: np.where(np.isfinite(signals[name]), signals[name], np.nan) for name in heard}
            self.drawer.folded(step, ids, finite)

    def _fold_served(self, ids: Ids) -> None:
        if any(column.signal == SERVED for column in self.derived):
            self._fold_columns(ids, {SERVED: np.ones(len(ids), np.float32)})

    def _fold_columns(self, ids: Ids, signals: Mapping[str, Float32s]) -> None:
        for derived in self.derived:
            values = signals.get(derived.signal)
            if values is None:
                continue
            finite = np.isfinite(values)
            at = ... if finite.all() else finite
            # The drawer is built before the columns change, so that it hears of every change.
            drawer = self.drawer
            changed = ascending(ids[at])
            distinct = len(changed) == len(ids[at])
            for name in derived.columns:
                self._keep(name, changed)
            derived.fold(self.examples.columns, ids[at], values[at], distinct=distinct)
            for name in derived.columns:
                self._mark(name, changed)
            drawer.changed(changed)

    def _expire(self, before: int) -> None:
        """Closes and forgets the steps below `before`: no draw waits for their reports any longer."""
        while (step := next(iter(self.steps), before)) < before:
            record = self.steps[step]
            if not record.closed:
                record.closed = True
                self.counters.expired_steps += 1
                self._advance()
            if step >= self.folded_steps:
                return
            del self.steps[step]

    # ---- columns ----

    def _columns_needed(self) -> list[str]:
        derived = [name for column in self.derived for name in column.columns]
        return [*derived, *self.policy.static, *self.policy.own]

    def _add_columns(self) -> None:
        for name in self._columns_needed():
            if name not in self.examples.columns:
                self.examples.columns[name] = np.full(self.examples.size, np.nan, np.float32)
                self.dirty[name] = np.ones(-(-self.examples.size // COLUMN_CHUNK), np.bool_)

    def _take_columns(self, columns: Mapping[str, Float32s]) -> None:
        for name in self._columns_needed():
            self.examples.columns[name] = columns[name]
            self.dirty[name] = np.zeros(-(-self.examples.size // COLUMN_CHUNK), np.bool_)

    def _drop_columns(self) -> None:
        for name in set(self.examples.columns) - set(self._columns_needed()):
            del self.examples.columns[name], self.dirty[name]

    def _before_put(self, name: str, ids: Ids) -> None:
        self._keep(name, ids)
        self._mark(name, ids)

    def _keep(self, name: str, ids: Ids) -> None:
        """To be called before a column changes at `ids`: a save under way may want the values as they were."""
        if self._is_frozen(name):
            self.frozen[name].keep(ids)

    def _is_frozen(self, name: str) -> bool:
        """Whether a save under way reads this very column."""
        return name in self.frozen and self.frozen[name].values is self.examples.columns[name]

    def _mark(self, name: str, ids: Ids) -> None:
        self.dirty[name][ids // COLUMN_CHUNK] = True

    def check(self) -> None:
        """Raises AssertionError where an invariant is broken. O(size)."""
        assert self.folded_steps <= self.closed_steps <= self.next_step, (
            self.folded_steps,
            self.closed_steps,
            self.next_step,
        )
        assert set(self.examples.columns) == set(self._columns_needed()) == set(self.dirty)
        for column in self.examples.columns.values():
            assert len(column) == self.examples.size
        self.peek_drawer().check()


def _longer(column: Float32s, added: int, *, in_place: bool) -> Float32s:
    """`column` with so many NaN behind it; `in_place`, nobody reads a part of it meanwhile, so that it is not there
    twice."""
    size = len(column)
    if in_place and column.flags.owndata:
        # NumPy's own count of who refers to it differs between versions of Python: it misses some, and refuses others.
        column.resize(size + added, refcheck=False)
        column[size:] = np.nan
        return column
    return np.concatenate([column, np.full(added, np.nan, np.float32)])
