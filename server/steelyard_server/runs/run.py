"""A run that serves: the single writer of its journal, on its own thread.

Every event goes the same way: it is judged against the state, applied to it, and written; what follows from it
(a batch, an acknowledgement) is sent by the store's callback, once it is durable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from steelyard import weigh
from steelyard_server.core.events import (
    AttemptBegan,
    BatchDrawn,
    Bookmarked,
    ColumnSet,
    Event,
    Float32s,
    Ids,
    LossesReported,
    PolicyChanged,
    RunCreated,
    SignalsObserved,
    StepClosed,
)
from steelyard_server.history.errors import RecordDamaged, StoreError
from steelyard_server.history.ops import Op, Put
from steelyard_server.history.store import Store
from steelyard_server.log import logger
from steelyard_server.policies.policy import Policy, PolicyError, parse_policy
from steelyard_server.runs import reports
from steelyard_server.runs.durable import Durable
from steelyard_server.runs.errors import Exists, Invalid, Missing, RunError, Superseded, Unavailable, Unready
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.mailbox import Mailbox
from steelyard_server.runs.messages import (
    Acknowledgement,
    Disposition,
    Join,
    Joined,
    Outbox,
    Refusal,
    Report,
    Slice,
)
from steelyard_server.runs.ranks import Rank, Ranks, check_attempt, check_credit, check_join
from steelyard_server.runs.spec import RunSpec
from steelyard_server.runs.state import HistoryEntry, RunState
from steelyard_server.runs.stats import RunStats, stats_of
from steelyard_server.runs.weighing import StepWeights, draw_weight

T = TypeVar("T")

_CALL_SECONDS = 30.0
_LONG_CALL_SECONDS = 300.0
"""For calls that read the journal from a checkpoint on."""

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class CheckpointRule:
    """A checkpoint is made when either bound is passed, so both bound what a restart has to replay."""

    seconds: float = 300.0
    journal_bytes: int = 256 << 20


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


class Run:
    """Methods may be called from any thread, unless their name says that they belong to the run's own."""

    def __init__(
        self,
        store: Store,
        open_log: Callable[[], RunLog],
        name: str,
        *,
        rule: CheckpointRule,
        reconcile: Callable[[RunState], Sequence[Event]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._open_log = open_log
        self._name = name
        self._rule = rule
        self._reconcile = reconcile
        self._clock = clock
        self._ranks = Ranks()
        self._weights = StepWeights()
        self._undurable: dict[int, Durable] = {}
        self._draining = False
        self._state: RunState | None = None
        self._broken: Exception | None = None
        self._waited_since: dict[int, float] = {}
        self._last_checkpoint = clock()
        self._bytes_since_checkpoint = 0
        self._rules: dict[int, weigh.Rule] = {}
        self._tally = {"duplicate": 0, "late": 0, "refused": 0}
        self._mailbox = Mailbox(f"run {name!r}", self._tick)
        self._mailbox.start()
        self._mailbox.post(self._load)

    # ---- the trainers' stream ----

    def join(self, join: Join, outbox: Outbox) -> None:
        """Seats a rank; answers with Joined, or ends the outbox with what stands against it."""
        if not self._mailbox.post(lambda: self._guard(outbox, lambda: self._join(join, outbox))):
            outbox.end(Unavailable(f"run {self._name!r} is closed; join again"))

    def credit(self, outbox: Outbox, batches: int) -> None:
        self._mailbox.post(lambda: self._credit(outbox, batches))

    def report(self, outbox: Outbox, report: Report) -> None:
        self._mailbox.post(lambda: self._report(outbox, report))

    def leave(self, outbox: Outbox) -> None:
        """The stream is over; its seat is free again."""
        self._mailbox.post(lambda: self._leave(outbox))

    # ---- calls ----

    def info(self) -> RunInfo:
        return self._call(self._info)

    def stats(self) -> RunStats:
        return self._call(lambda: stats_of(self._ready(), self._tally, len(self._ranks), self._log))

    def history(self, ids: Ids) -> list[list[tuple[int, float]]]:
        """The last K (step, loss) of each id, oldest first, with those reported and not folded yet."""
        return self._call(lambda: self._read_history(ids))

    def column(self, name: str, ids: Ids | None) -> Float32s:
        return self._call(lambda: self._read_column(name, ids))

    def batch(self, step: int) -> Slice:
        return self._call(lambda: self._read_batch(step))

    def observe(self, step: int, ids: Ids, signals: Mapping[str, Float32s]) -> None:
        self._call(lambda: self._observe(step, ids, signals))

    def close_step(self, step: int) -> None:
        self._call(lambda: self._close_step(step, "owner"))

    def change_policy(self, draw: Mapping[str, Any] | None, weigher: Mapping[str, Any] | None) -> RunInfo:
        return self._call(lambda: self._change_policy(draw, weigher))

    def bookmark(self, name: str, step: int | None) -> int:
        return self._call(lambda: self._bookmark(name, step))

    def delete_bookmark(self, name: str) -> None:
        self._call(lambda: self._delete_bookmark(name))

    def rewind(self, to: int | str) -> RunInfo:
        return self._call(lambda: self._rewind_call(to), _LONG_CALL_SECONDS)

    def fork(self, at: int | str, new: Callable[[RunState, RunLog, int], T]) -> T:
        """Calls `new` with the state at `at`, this run's log and the record up to which its history counts."""
        return self._call(lambda: self._fork(at, new), _LONG_CALL_SECONDS)

    def reconcile(self) -> Future[None]:
        """Takes over what the dataset has become; durable when the future is done. A run that cannot now, does so
        when it is loaded again, before it draws."""
        return self._mailbox.ask(self._reconcile_if_loaded)

    def ask(self, question: Callable[[RunState], T]) -> T:
        """The answer of a pure function of the state."""
        return self._call(lambda: question(self._ready()))

    # ---- life ----

    def drain(self) -> None:
        """No new batches; what was reported is made durable and acknowledged; then the streams are told to come back
        later, and a checkpoint is made."""
        self._mailbox.post(self._drain)

    def close(self, timeout: float) -> bool:
        """Stops the run after what is queued; False where it was still busy after `timeout` seconds."""
        return self._mailbox.close(timeout)

    def remove(self) -> bool:
        """Ends the streams because the run is deleted, and stops; False where it is still busy.

        Unavailable, and nothing is changed, where its turn did not come.
        """
        if not self._mailbox.closed:
            self._call(lambda: self._end_streams(Missing(f"run {self._name!r} was deleted")))
        return self._mailbox.close(_CALL_SECONDS)

    # ---- everything below runs on the run's own thread ----

    def _call(self, function: Callable[[], T], timeout: float = _CALL_SECONDS) -> T:
        return self._mailbox.call(function, timeout)

    def _ready(self) -> RunState:
        if self._state is None and self._broken is None:
            self._load()
        if self._broken is not None:
            raise self._broken.with_traceback(None)
        if self._state is None:
            raise Unavailable(f"run {self._name!r} is not loaded yet; try again")
        return self._state

    def _load(self) -> None:
        """Reads the run from disk. Where that fails for good, `_broken` says so to every caller."""
        try:
            self._log = self._open_log()
            self._rules.clear()
            self._state = self._log.load()
            self._last_checkpoint, self._bytes_since_checkpoint = self._clock(), self._log.replayed_bytes
            self._reconcile_now()
        except RecordDamaged as damage:
            _log.error("run_damaged", run=self._name, place=damage.place, why=damage.why)
            self._broken, self._state = damage, None
        except StoreError as error:
            _log.warning("run_not_loaded", run=self._name, error=str(error))
            self._state = None
        except Exception as error:
            _log.exception("run_not_loaded", run=self._name)
            self._broken, self._state = error, None

    def _guard(self, outbox: Outbox, action: Callable[[], None]) -> None:
        """Ends the outbox with whatever `action` raises."""
        try:
            action()
        except Exception as error:
            if not isinstance(error, (RunError, StoreError)):
                _log.exception("stream_failed", run=self._name)
            outbox.end(error)

    # -- writing --

    def _write(self, events: Sequence[Event], then: Callable[[], None]) -> None:
        """Applies and journals `events`; `then` runs on the writer's thread once they are durable."""
        with self._writing() as (state, log):
            ops = self._apply(state, events)

            def settle(error: BaseException | None) -> None:
                if error is None:
                    then()
                else:
                    self._mailbox.post(lambda: self._lost(log))

            self._store.write(ops, settle)

    def _write_and_wait(self, events: Sequence[Event]) -> None:
        """Applies and journals `events`; durable on return."""
        with self._writing() as (state, _):
            self._store.commit(self._apply(state, events))

    def _commit(self, ops: Sequence[Op]) -> None:
        """Writes `ops` behind everything written before; on return they are durable, and so is all of that."""
        with self._writing() as (_, log):
            self._store.commit([log.journal.fence(), *ops])

    def _apply(self, state: RunState, events: Sequence[Event]) -> list[Op]:
        for event in events:
            state.apply(event)
        ops = self._log.append(events)
        self._bytes_since_checkpoint += sum(len(op.value) for op in ops if isinstance(op, Put))
        return ops

    @contextmanager
    def _writing(self) -> Iterator[tuple[RunState, RunLog]]:
        """Whatever goes wrong between applying events and handing them to the store, the disk is right."""
        state, log = self._ready(), self._log
        try:
            yield state, log
        except Exception:
            self._lost(log)
            raise

    def _lost(self, written: RunLog) -> None:
        """A write of `written` failed: what is in memory may not be on disk. Forgets it and reads the disk when next
        asked. Nothing, where that has been done already."""
        if self._state is not None and written is self._log:
            _log.warning("run_reloads", run=self._name)
            self._state = None
            self._undurable.clear()
            self._end_streams(Unavailable(f"run {self._name!r} could not be written; join again"))

    def _end_streams(self, error: Exception | None) -> None:
        self._ranks.end_all(error)
        self._weights.forget_waiters()
        self._waited_since.clear()

    # -- the stream --

    def _join(self, join: Join, outbox: Outbox) -> None:
        if self._draining:
            raise Unavailable("the server drains; join again")
        check_join(join)
        state = self._ready()
        check_credit(join.credit, state.spec.report_window)
        if check_attempt(join, state.attempts):
            self._begin_attempt(join)
        else:
            self._ranks.check_free(join)
        state = self._ready()
        rank = Rank(join.session, join.rank, join.replica, join.world_size, outbox, 0, join.credit)
        rank.cursor = self._first_step_of(rank, join)
        rank.weigher_step = state.weighers[-1][0]
        before = self._ranks.seat(rank)
        if before is not None:
            before.outbox.end(Superseded(f"session {join.session!r} joined again on another stream"))
        policy = state.policy
        outbox.send(
            Joined(
                state.spec,
                state.examples.size,
                rank.cursor,
                state.attempts.current,
                policy.draw.reads_reports,
                policy.weigh.reads == "losses",
            )
        )
        self._pump()

    def _begin_attempt(self, join: Join) -> None:
        """Ends the attempt before and, where steps from `start` on left a trace, takes the run back to `start`."""
        state = self._ready()
        onwards = max(state.closed_steps, self._log.oldest_step())
        start = onwards if join.start_step is None else join.start_step
        self._check_step(start)
        self._end_streams(
            Superseded(
                f"attempt {join.attempt!r} has begun at step {start}; this trainer belongs to an older launch"
            )
        )
        began = AttemptBegan(join.attempt, join.world_size, start)
        if self._left_a_trace(start):
            self._rewind(start, began, policy=state.policy)
        else:
            self._write_and_wait([began])

    def _left_a_trace(self, start: int) -> bool:
        """Whether the run differs from one that never went past `start`; batches drawn ahead alone do not count."""
        state = self._ready()
        if state.closed_steps > start or state.weighers[-1][0] > start or state.spec.staleness == "any":
            return start < state.next_step
        if any(step > start for step in state.bookmarks.values()):
            return True
        reported = any(
            record.closed or record.reported.any() for step, record in state.steps.items() if step >= start
        )
        return reported or any(seen.step >= start for seen in state.observed)

    def _first_step_of(self, rank: Rank, join: Join) -> int:
        state = self._ready()
        if join.resume_step is not None:
            if not state.attempts.start_step <= join.resume_step <= state.next_step:
                raise Unready(
                    f"expected a resume_step between {state.attempts.start_step}, where the attempt began, and "
                    f"{state.next_step}, the next step to draw; got {join.resume_step}"
                )
            return join.resume_step
        first_open = max(state.attempts.start_step, state.closed_steps)
        if not rank.slice_of(state.spec.batch_size)[1]:
            # It never reports, so what it has trained is not known: it goes where the others may be.
            return first_open
        return state.first_unreported(rank.slice_of, first_open)

    def _credit(self, outbox: Outbox, batches: int) -> None:
        rank = self._ranks.of(outbox)
        if rank is not None:
            self._guard(outbox, lambda: self._grant(rank, batches))

    def _grant(self, rank: Rank, batches: int) -> None:
        check_credit(rank.credit + batches, self._ready().spec.report_window)
        rank.credit += batches
        self._pump()

    def _leave(self, outbox: Outbox) -> None:
        """Frees the seat; the stream ends behind the acknowledgements of what it reported."""
        if self._ranks.of(outbox) is None:
            outbox.end(None)
            return
        self._ranks.leave(outbox)
        self._guard(outbox, lambda: self._write([], lambda: outbox.end(None)))

    def _pump(self) -> None:
        """Sends batches wherever there is credit, drawing what is not drawn yet.

        One batch a rank in turn, so that a rank with much credit does not keep the others waiting.
        """
        hungry = [rank for rank in self._ranks if rank.credit > 0]
        while hungry:
            hungry = [rank for rank in hungry if self._serve_guarded(rank) and rank.credit > 0]

    def _serve_guarded(self, rank: Rank) -> bool:
        """As _serve; what stands against it ends this rank's stream, and only this one."""
        if self._ranks.of(rank.outbox) is not rank:
            return False
        try:
            return self._serve(rank)
        except (RunError, RecordDamaged) as error:
            self._ranks.leave(rank.outbox)
            rank.outbox.end(error)
            return False

    def _serve(self, rank: Rank) -> bool:
        state = self._ready()
        if rank.cursor == state.next_step and not self._draw():
            return False
        step = rank.cursor
        record = state.steps.get(step)
        drawn = record.drawn if record is not None else self._log.journal.drawn(step)
        if drawn is None:
            raise Unready(f"step {step} is no longer retained")
        message = self._slice(rank, drawn)
        rank.cursor += 1
        rank.credit -= 1
        pending = self._undurable.get(step)
        if pending is None:
            rank.outbox.send(message)
        else:
            pending.then(lambda: rank.outbox.send(message))
        return True

    def _slice(self, rank: Rank, drawn: BatchDrawn) -> Slice:
        state = self._ready()
        offset, count = rank.slice_of(len(drawn.ids))
        rule_since = self._rule_since(drawn.step)
        changed = rule_since != rank.weigher_step
        rank.weigher_step = rule_since
        weight = draw_weight(self._rule_of(drawn.step), drawn)
        return Slice(
            drawn,
            offset,
            count,
            None if weight is None else weight[offset : offset + count],
            state.examples.size,
            {"draw": state.spec.draw, "weigh": state.weigher_of(drawn.step)} if changed else None,
        )

    def _rule_since(self, step: int) -> int:
        """The step since when the rule of `step` has been in force."""
        since: int = next(since for since, _ in reversed(self._ready().weighers) if since <= step)
        return since

    def _rule_of(self, step: int) -> weigh.Rule:
        since = self._rule_since(step)
        if since not in self._rules:
            self._rules[since] = weigh.parse(self._ready().weigher_of(step))
        return self._rules[since]

    def _draw(self) -> bool:
        """Draws the next batch if it may be drawn now."""
        state = self._ready()
        if self._draining or state.awaited_step() is not None:
            return False
        try:
            event = state.draw()
        except ValueError as error:
            self._end_streams(Unready(f"step {state.next_step} cannot be drawn: {error}"))
            return False
        durable = Durable()
        self._undurable = {step: one for step, one in self._undurable.items() if not one.reached}
        self._undurable[event.step] = durable
        self._write([event], durable.reach)
        return True

    def _report(self, outbox: Outbox, report: Report) -> None:
        if self._ranks.of(outbox) is None:
            return
        try:
            disposition = reports.judge(self._ready(), report, self._digest_of)
        except RunError as error:
            self._tally["refused"] += 1
            outbox.send(Refusal(report.step, report.offset, report.count, error))
            return
        except StoreError as error:
            outbox.end(error)
            return
        self._guard(outbox, lambda: self._take_report(outbox, report, disposition))

    def _take_report(self, outbox: Outbox, report: Report, disposition: Disposition) -> None:
        answer = Acknowledgement(report.step, report.offset, report.count, disposition)
        events: list[Event] = []
        if disposition is Disposition.APPLIED:
            events = [LossesReported(report.step, report.offset, report.signals)]
        else:
            self._tally[disposition.name.lower()] += 1
        # Also what changes nothing is answered in turn: the report that it repeats must be durable first.
        self._write(events, lambda: outbox.send(answer))
        if report.want_weights and report.step in self._ready().steps:
            self._weights.ask(report.step, report.offset, report.count, outbox)
        self._send_weights(report.step)
        self._pump()

    def _send_weights(self, step: int) -> None:
        state = self._ready()
        record = state.steps.get(step)
        if record is not None and record.closed:
            for outbox, message in self._weights.answers(self._rule_of(step), record):
                outbox.send(message)

    def _digest_of(self, step: int) -> int | None:
        drawn = self._log.journal.drawn(step)
        return None if drawn is None else drawn.digest

    # -- calls --

    def _info(self) -> RunInfo:
        state = self._ready()
        return RunInfo(
            state.spec,
            state.next_step,
            state.closed_steps,
            self._log.oldest_step(),
            state.examples.size,
            state.attempts.current,
            dict(state.bookmarks),
        )

    def _read_history(self, ids: Ids) -> list[list[tuple[int, float]]]:
        state = self._ready()
        self._check_ids(ids)
        waiting = [
            HistoryEntry(step, record.drawn.ids[record.reported], record.signals["loss"][record.reported])
            for step, record in sorted(state.steps.items())
            if step >= state.folded_steps and state.spec.staleness != "any" and record.reported.any()
        ]
        return self._log.history(ids, [*state.unsaved_history, *waiting])

    def _read_column(self, name: str, ids: Ids | None) -> Float32s:
        state = self._ready()
        column = state.examples.columns.get(name)
        if column is None:
            known = ", ".join(sorted(state.examples.columns)) or "none"
            raise Missing(f"run {self._name!r} keeps no column {name!r}; its policy reads: {known}")
        if ids is None:
            return column.copy()
        self._check_ids(ids)
        return column[ids]

    def _read_batch(self, step: int) -> Slice:
        state = self._ready()
        record = state.steps.get(step)
        pending = self._undurable.get(step)
        if pending is not None and not pending.reached:
            self._commit([])
        drawn = record.drawn if record else self._log.journal.drawn(step)
        if drawn is None:
            raise Missing(
                f"run {self._name!r} holds no batch of step {step}: the steps {self._log.oldest_step()}.."
                f"{state.next_step - 1} are retained"
            )
        rule = self._rule_of(step)
        weight = draw_weight(rule, drawn)
        if record is not None and record.closed and rule.reads == "losses":
            weight = self._weights.of(rule, record)
        return Slice(drawn, 0, len(drawn.ids), weight, state.examples.size, None)

    def _observe(self, step: int, ids: Ids, signals: Mapping[str, Float32s]) -> None:
        state = self._ready()
        reports.check_signals(signals, "the observation")
        count = len(next(iter(signals.values())))
        if count != len(ids):
            raise Invalid(f"expected one value for each of {len(ids)} ids in the observation; got {count}")
        self._check_ids(ids)
        reports.check_values(state, signals, "the observation")
        self._write_and_wait([SignalsObserved(step, ids, signals)])
        self._pump()

    def _close_step(self, step: int, reason: str) -> None:
        state = self._ready()
        if step >= state.next_step:
            raise Unready(f"step {step} is not drawn yet; the next step to draw is {state.next_step}")
        record = state.steps.get(step)
        if record is not None and not record.closed:
            self._write_and_wait([StepClosed(step, reason)])
            self._send_weights(step)
            self._pump()

    def _change_policy(self, draw: Mapping[str, Any] | None, weigher: Mapping[str, Any] | None) -> RunInfo:
        state = self._ready()
        policy = changed_policy(state, draw, weigher)
        if policy.canonical() != state.policy.canonical():
            self._commit([])
            events = policy_events(state, policy, self._log, None)
            self._write_and_wait(events)
            self._rules.clear()
            self._reconcile_now()
            self._pump()
        return self._info()

    def _bookmark(self, name: str, step: int | None) -> int:
        state = self._ready()
        if not 1 <= len(name) <= 128:
            raise Invalid(f"expected a bookmark name of 1..128 characters; got {len(name)}")
        at = state.closed_steps if step is None else step
        self._check_step(at)
        held = state.bookmarks.get(name, at)
        if held != at:
            raise Exists(f"bookmark {name!r} holds step {held}; got step {at}; delete it first to move it")
        if name not in state.bookmarks:
            self._write_and_wait([Bookmarked(name, at)])
        return at

    def _delete_bookmark(self, name: str) -> None:
        if name in self._ready().bookmarks:
            self._write_and_wait([Bookmarked(name, None)])

    def _step_of(self, to: int | str) -> int:
        state = self._ready()
        if isinstance(to, int):
            step = to
        elif to in state.bookmarks:
            step = state.bookmarks[to]
        else:
            known = ", ".join(sorted(state.bookmarks)) or "none"
            raise Missing(f"run {self._name!r} has no bookmark {to!r}; its bookmarks: {known}")
        self._check_step(step)
        return step

    def _check_step(self, step: int) -> None:
        state, oldest = self._ready(), self._log.oldest_step()
        if not oldest <= step <= state.next_step:
            raise Unready(
                f"expected a step between {oldest}, the oldest retained, and {state.next_step}, the next to draw; "
                f"got {step}"
            )

    def _rewind_call(self, to: int | str) -> RunInfo:
        step = self._step_of(to)
        self._end_streams(
            Superseded(f"run {self._name!r} was rewound to step {step}; this trainer must stop")
        )
        # The attempt is over: a trainer of it that comes back would go on from a state that is undone.
        self._rewind(step, AttemptBegan("", 0, step))
        return self._info()

    def _rewind(self, step: int, then: AttemptBegan, *, policy: Policy | None = None) -> None:
        """Takes the run back to `step` and goes on with `then`, and with `policy` where one is given, else with that
        of then. All of it is durable, or nothing."""
        self._commit([])
        past = self._log.past(step)
        events: list[Event] = [then]
        if policy is not None and policy.canonical() != past.state.policy.canonical():
            events += policy_events(past.state, policy, self._log, past.cut)
        for event in events:
            past.state.apply(event)
        self._commit(self._log.rewind(past, events))
        self._state = past.state
        self._undurable.clear()
        self._rules.clear()
        self._weights = StepWeights()
        self._reconcile_now()
        _log.info("run_rewound", run=self._name, step=step)

    def _fork(self, at: int | str, new: Callable[[RunState, RunLog, int], T]) -> T:
        step = self._step_of(at)
        self._commit([])
        past = self._log.past(step)
        return new(past.state, self._log, past.cut)

    def _reconcile_if_loaded(self) -> None:
        if self._state is not None:
            self._reconcile_now()
            self._pump()

    def _reconcile_now(self) -> None:
        events = self._reconcile(self._ready())
        if events:
            self._write_and_wait(events)

    def _check_ids(self, ids: Ids) -> None:
        size = self._ready().examples.size
        bad = np.flatnonzero((ids < 0) | (ids >= size))
        if len(bad):
            raise Invalid(f"expected ids 0..{size - 1}; got {ids[bad[0]]} at position {bad[0]}")

    # -- time --

    def _tick(self) -> None:
        if self._state is None and self._broken is None:
            self._load()
            return
        if self._broken is not None:
            return
        self._close_overdue()
        due = self._clock() - self._last_checkpoint > self._rule.seconds
        if self._bytes_since_checkpoint > (0 if due else self._rule.journal_bytes):
            self._checkpoint()

    def _close_overdue(self) -> None:
        """Closes the steps that a draw, or a trainer that asked for weights, has waited for too long. While every rank
        of the attempt is connected, their reports may still come (an evaluation can take long), and nothing is closed.
        """
        state, now = self._ready(), self._clock()
        if self._draining or not len(self._ranks) or self._ranks.all_connected(state.attempts.world_size):
            self._waited_since.clear()
            return
        waits = self._weights.awaited_steps()
        awaited = state.awaited_step()
        if awaited is not None and any(r.credit > 0 and r.cursor == state.next_step for r in self._ranks):
            waits.add(awaited)
        self._waited_since = {step: self._waited_since.get(step, now) for step in waits}
        for step, since in sorted(self._waited_since.items()):
            if now - since > state.spec.report_timeout:
                _log.warning("step_closed", run=self._name, step=step, reason="timeout")
                self._close_step(step, "timeout")

    def _checkpoint(self) -> None:
        state = self._ready()
        self._commit(self._log.checkpoint(state))
        self._commit(self._log.prune(state))
        self._last_checkpoint, self._bytes_since_checkpoint = self._clock(), 0

    def _drain(self) -> None:
        self._draining = True
        try:
            if self._state is not None:
                self._commit([])
                if self._bytes_since_checkpoint:
                    self._checkpoint()
        finally:
            self._end_streams(Unavailable("the server stops; join again"))


def changed_policy(
    state: RunState, draw: Mapping[str, Any] | None, weigher: Mapping[str, Any] | None
) -> Policy:
    """The run's policy with the given parts in place of its own; Invalid where it cannot serve the run."""
    try:
        policy = parse_policy(draw or state.spec.draw, weigher or state.spec.weigh)
    except PolicyError as error:
        raise Invalid(str(error)) from error
    drawable = state.examples.size - len(state.examples.retired)
    obstacle = policy.draw.too_small(drawable, state.spec.batch_size)
    if obstacle is not None:
        raise Invalid(obstacle)
    return policy


def policy_events(state: RunState, policy: Policy, log: RunLog, seq: int | None) -> list[Event]:
    """The change to `policy`, with the derived columns that the state lacks, folded from the history as of `seq`."""
    events: list[Event] = [PolicyChanged(policy.canonical())]
    for derived in policy.draw.derived:
        if any(name not in state.examples.columns for name in derived.columns):
            for name, values in log.rebuilt_columns(derived, state, seq).items():
                known = np.flatnonzero(~np.isnan(values))
                if len(known):
                    events.append(ColumnSet(name, known, values[known]))
    return events


def created_event(spec: RunSpec, dataset_size: int) -> RunCreated:
    return RunCreated(spec.model_dump(mode="json"), dataset_size)
