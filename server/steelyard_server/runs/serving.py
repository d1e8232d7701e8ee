"""What a run does for its trainers: seats ranks, draws and sends batches, takes reports, answers with weights.

Belongs to the run's own thread. Every event goes the same way: it is judged against the state, applied to it, and
written; what follows from it (a batch, an acknowledgement) is sent by the store's callback, once it is durable. Batches
are drawn, and all that was written handed to the store, when what has gathered in the mailbox is handled (`turn_over`):
so many reports cost one commit.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

from steelyard.split import split
from steelyard_server.core.events import (
    AttemptBegan,
    BatchDrawn,
    Event,
    Float32s,
    LossesReported,
    StepClosed,
)
from steelyard_server.history.errors import StoreError
from steelyard_server.log import logger
from steelyard_server.runs import reports
from steelyard_server.runs.durable import Durable
from steelyard_server.runs.errors import RunError, Superseded, Unavailable, Unready
from steelyard_server.runs.journaled import Journaled
from steelyard_server.runs.limits import Limits
from steelyard_server.runs.messages import (
    Acknowledgement,
    Credit,
    Disposition,
    Join,
    Joined,
    Outbox,
    Refusal,
    Report,
    Slice,
)
from steelyard_server.runs.ranks import Rank, Ranks, check_attempt, check_credit, check_draws, check_join
from steelyard_server.runs.state import PATIENCE, UndrawableError
from steelyard_server.runs.stats import missing_input
from steelyard_server.runs.steps import StepRecord
from steelyard_server.runs.tally import Tally
from steelyard_server.runs.weighing import StepWeights, draw_weight, journaled_weight, weighing_of

_log = logger(__name__)

_TELL_AGAIN_SECONDS = 1.0
"""A trainer whose every report is refused fills no log: of each reason there is a line so often. All are counted."""
_GIVE_WAY_SECONDS = 5e-5


class Serving:
    """The streams of one run."""

    def __init__(
        self,
        run: Journaled,
        clock: Callable[[], float] = time.monotonic,
        max_draws: int = Limits().max_draws_per_call,
    ) -> None:
        self.ranks = Ranks()
        self.weights = StepWeights()
        self.tally = Tally()
        self.draining = False
        self._run = run
        self._clock = clock
        self._max_draws = max_draws
        self._undurable: dict[int, Durable] = {}
        self._weighed: tuple[BatchDrawn, Float32s | None] | None = None  # the batch that was sent last
        self._waited_since: dict[int, float] = {}
        # Ranks with credit: those that may be sent a batch, and those that have all that are drawn.
        self._hungry: dict[Rank, None] = {}
        self._ahead: dict[Rank, None] = {}
        self._told_refused: dict[str, float] = {}
        # Streams without a seat that end when what they reported is durable.
        self._leaving: dict[Outbox, None] = {}

    def forget(self) -> None:
        """The state was replaced: whatever was kept beside it belonged to the one before."""
        self._undurable.clear()
        self._weighed = None
        self.weights = StepWeights()

    def await_durable(self, step: int) -> None:
        """On return the draw of `step` is on disk, if it was made."""
        pending = self._undurable.get(step)
        if pending is not None and not pending.reached:
            self._run.settle()

    def end_streams(self, error: Exception | None) -> None:
        for rank in self.ranks:
            self._log_left(rank)
        self.ranks.end_all(error)
        self.weights.forget_waiters()
        self._waited_since.clear()
        self._hungry.clear()
        self._ahead.clear()

    def lost(self, error: Exception) -> None:
        """The state was forgotten: also who has left may have reported what is not durable."""
        self.end_streams(error)
        for outbox in list(self._leaving):
            outbox.end(error)
        self._leaving.clear()
        self.forget()

    def join(self, join: Join, outbox: Outbox) -> None:
        if self.draining:
            raise Unavailable("the server drains; join again")
        check_join(join)
        state = self._run.state()
        check_credit(join.credit, state.spec.report_window)
        mine = split(state.spec.batch_size, join.world_size, join.rank)[1]
        check_draws(join.credit, mine, self._max_draws)
        if check_attempt(join, state.attempts):
            self._begin_attempt(join)
        else:
            self.ranks.check_free(join)
        state = self._run.state()
        rank = Rank(join.session, join.rank, join.replica, join.world_size, outbox, 0, join.credit)
        rank.cursor = self._first_step_of(rank, join)
        rank.weigher_step = state.weighers[-1][0]
        before = self.ranks.seat(rank)
        if rank.credit:
            self._hungry[rank] = None
        if before is not None:
            self._ahead.pop(before, None)
            before.outbox.end(Superseded(f"session {join.session!r} joined again on another stream"))
        _log.info("rank_joined", run=self._run.name, rank=join.rank, session=join.session)
        policy = state.policy
        outbox.send(
            Joined(
                state.spec,
                state.examples.size,
                rank.cursor,
                state.attempts.current,
                policy.reads_reports,
                weighing_of(policy.weigh),
            )
        )
        self._tell_missing(rank)

    def _tell_missing(self, rank: Rank) -> None:
        """Tells a rank, once each, of signals that the policy reads and that do not come."""
        state = self._run.state()
        for one in state.missing_signals():
            if one.name not in rank.told:
                rank.told.add(one.name)
                rank.outbox.send(missing_input(one, state.known_signals))
        if state.closed_steps >= state.policy_since + PATIENCE:
            rank.told_of_policy = state.policy_since

    def _begin_attempt(self, join: Join) -> None:
        """Ends the attempt before and, where steps from `start` on left a trace, takes the run back to `start`."""
        state = self._run.state()
        onwards = max(state.closed_steps, self._run.log.oldest_step())
        start = onwards if join.start_step is None else join.start_step
        self._run.check_step(start)
        self.end_streams(
            Superseded(
                f"attempt {join.attempt!r} has begun at step {start}; this trainer belongs to an older launch"
            )
        )
        began = AttemptBegan(join.attempt, join.world_size, start)
        if self._left_a_trace(start):
            self._run.rewind(start, began, policy=state.policy)
        else:
            self._run.write_and_wait([began])
        _log.info(
            "attempt_began",
            run=self._run.name,
            attempt=join.attempt,
            world_size=join.world_size,
            step=start,
        )

    def _left_a_trace(self, start: int) -> bool:
        """Whether the run differs from one that never went past `start`; batches drawn ahead alone do not count."""
        state = self._run.state()
        if state.closed_steps > start or state.weighers[-1][0] > start or state.spec.staleness == "any":
            return start < state.next_step
        if any(step > start for step in state.bookmarks.values()):
            return True
        reported = any(
            record.closed or record.reported.any() for step, record in state.steps.items() if step >= start
        )
        return reported or any(seen.step >= start for seen in state.observed)

    def _first_step_of(self, rank: Rank, join: Join) -> int:
        state = self._run.state()
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

    def take(self, outbox: Outbox, messages: Sequence[Report | Credit]) -> None:
        """What a trainer sent, in its order."""
        for message in messages:
            rank = self.ranks.of(outbox)
            if rank is None:
                return
            if isinstance(message, Credit):
                self.guard(outbox, partial(self._grant, rank, message.batches))
            else:
                self._report(rank, message)

    def _grant(self, rank: Rank, batches: int) -> None:
        spec, credit = self._run.state().spec, rank.credit + batches
        check_credit(credit, spec.report_window)
        check_draws(credit, rank.slice_of(spec.batch_size)[1], self._max_draws)
        rank.credit += batches
        if rank not in self._ahead:
            self._hungry[rank] = None

    def leave(self, outbox: Outbox) -> None:
        """Frees the seat; the stream ends behind the acknowledgements of what it reported."""
        rank = self.ranks.of(outbox)
        if rank is None:
            outbox.end(None)
            return
        self._unseat(rank)
        self._leaving[outbox] = None
        self.guard(outbox, lambda: self._run.write([]).then(partial(self._left, outbox)))

    def _left(self, outbox: Outbox) -> None:
        """On the writer's thread."""
        self._leaving.pop(outbox, None)
        outbox.end(None)

    def _unseat(self, rank: Rank) -> None:
        self.ranks.leave(rank.outbox)
        self._ahead.pop(rank, None)
        self._log_left(rank)

    def _log_left(self, rank: Rank) -> None:
        _log.info("rank_left", run=self._run.name, rank=rank.rank)

    def turn_over(self) -> None:
        """What has gathered is handled: draws and sends what that allows, and hands all that was written to the
        store."""
        try:
            self._pump()
        except Exception as error:
            if not isinstance(error, (RunError, StoreError)):
                _log.exception("draw_failed", run=self._run.name)
            self.end_streams(error)
        # Where the store takes nothing, the streams have been ended, and the run is read again by who asks next.
        with contextlib.suppress(StoreError):
            self._run.hand_over()

    def _pump(self) -> None:
        """Sends batches wherever there is credit, drawing what is not drawn yet.

        One batch a rank in turn, so that a rank with much credit does not keep the others waiting. O(1) where there is
        nothing to send, else O(ranks that are sent something) a batch.
        """
        hungry, self._hungry = list(self._hungry), {}
        while True:
            hungry = [rank for rank in hungry if self._serve_guarded(rank)]
            if self._ahead and self._draw():
                hungry += self._ahead
                self._ahead.clear()
            elif not hungry:
                return

    def _serve_guarded(self, rank: Rank) -> bool:
        """As _serve; what stands against it ends this rank's stream, and only this one."""
        if self.ranks.of(rank.outbox) is not rank:
            return False
        try:
            return self._serve(rank)
        except (RunError, StoreError) as error:
            self._unseat(rank)
            rank.outbox.end(error)
            return False

    def _serve(self, rank: Rank) -> bool:
        """Sends the rank its next batch, if it is drawn. Whether there may be another one for it."""
        state = self._run.state()
        if not rank.credit:
            return False
        if rank.cursor == state.next_step:
            self._ahead[rank] = None
            return False
        step = rank.cursor
        record = state.steps.get(step)
        drawn = record.drawn if record is not None else self._run.log.journal.drawn(step)
        if drawn is None:
            raise Unready(f"step {step} is no longer retained")
        message = self._slice(rank, drawn, record)
        rank.cursor += 1
        rank.credit -= 1
        pending = self._undurable.get(step)
        if pending is None:
            rank.outbox.send(message)
        else:
            pending.then(partial(rank.outbox.send, message))
        return True

    def _slice(self, rank: Rank, drawn: BatchDrawn, record: StepRecord | None) -> Slice:
        state = self._run.state()
        offset, count = rank.slice_of(len(drawn.ids))
        rule_since, weigher = state.weigher_since(drawn.step)
        weight = self._weight_of(drawn, record)
        changed = rule_since != rank.weigher_step
        rank.weigher_step = rule_since
        return Slice(
            drawn,
            offset,
            count,
            None if weight is None else weight[offset : offset + count],
            state.examples.size,
            {"draw": state.spec.draw, "mix": state.spec.mix, "weigh": weigher} if changed else None,
            weighing_of(state.rule_of(drawn.step)) if changed else None,
        )

    def _weight_of(self, drawn: BatchDrawn, record: StepRecord | None) -> Float32s | None:
        """As draw_weight; made once for all ranks that are served the batch one after the other."""
        if self._weighed is None or self._weighed[0] is not drawn:
            state = self._run.state()
            rule, seed = state.rule_of(drawn.step), state.spec.seed
            if record is None:
                self._weighed = drawn, journaled_weight(rule, drawn, seed)
            else:
                self._weighed = drawn, draw_weight(rule, record, seed)
        return self._weighed[1]

    def _draw(self) -> bool:
        """Draws the next batch if it may be drawn now."""
        state = self._run.state()
        if self.draining or state.awaited_step() is not None:
            return False
        try:
            event = state.draw()
        except UndrawableError as error:
            self.end_streams(Unready(f"step {state.next_step} cannot be drawn: {error}"))
            return False
        except Exception as error:
            _log.exception("draw_failed", run=self._run.name, step=state.next_step)
            self.end_streams(
                Unready(f"step {state.next_step} cannot be drawn: {type(error).__name__}: {error}")
            )
            self._run.forget()
            return False
        while self._undurable and self._undurable[oldest := next(iter(self._undurable))].reached:
            del self._undurable[oldest]
        # Of these, whoever waits for weights gets them from what was reported, while that is known.
        expiring = self.weights.awaited_below(event.step - state.spec.report_window, state)
        closed = state.closed_steps
        self.tally.batches += 1
        self.tally.staleness.add(event.step - state.folded_steps)
        self._undurable[event.step] = self._run.write([event])
        if expiring or state.closed_steps != closed:
            self.send_weights(expiring)
        return True

    def _report(self, rank: Rank, report: Report) -> None:
        outbox = rank.outbox
        try:
            disposition = reports.judge(self._run.state(), report, self._digest_of)
        except RunError as error:
            self.tally.refused[error.reason] += 1
            self._tell_refused(rank, report, error.reason)
            outbox.send(Refusal(report.step, report.offset, report.count, error))
            return
        except StoreError as error:
            outbox.end(error)
            return
        self.guard(outbox, partial(self._take_report, outbox, report, disposition))
        state = self._run.state()
        if rank.told_of_policy != state.policy_since and state.closed_steps >= state.policy_since + PATIENCE:
            self._tell_missing(rank)

    def _tell_refused(self, rank: Rank, report: Report, reason: str) -> None:
        """Without the message, which quotes what was reported."""
        now = self._clock()
        if now - self._told_refused.get(reason, -math.inf) < _TELL_AGAIN_SECONDS:
            return
        self._told_refused[reason] = now
        _log.warning("report_refused", run=self._run.name, rank=rank.rank, step=report.step, reason=reason)

    def _take_report(self, outbox: Outbox, report: Report, disposition: Disposition) -> None:
        answer = Acknowledgement(report.step, report.offset, report.count, disposition)
        events: list[Event] = []
        if disposition is Disposition.APPLIED:
            events = [LossesReported(report.step, report.offset, report.signals)]
        elif disposition is Disposition.DUPLICATE:
            self.tally.duplicate += 1
        else:
            self.tally.late += 1
        # The client knows that a late report weighs nothing.
        asks = report.want_weights and disposition is not Disposition.LATE
        if asks and report.step in self._run.state().steps:
            self.weights.ask(report.step, report.offset, report.count, outbox)
        # Also what changes nothing is answered in turn: the report that it repeats must be durable first.
        state = self._run.state()
        counters, tally = state.counters, self.tally
        losses, nonfinite = counters.reported_losses, counters.nonfinite_losses
        durable = self._run.write(events, self.send_weights)
        durable.then(partial(outbox.send, answer))
        if events:
            fresh = counters.reported_losses - losses
            tally.losses += fresh
            tally.nonfinite += counters.nonfinite_losses - nonfinite
            tally.loss_age.add(state.next_step - 1 - report.step, fresh)

    def send_weights(self, expired: Sequence[StepRecord] = ()) -> None:
        """Answers whoever waits for weights that there are by now; `expired`: steps that have just left memory."""
        answers = list(self.weights.answers(self._run.state(), expired))
        for outbox, message in answers:
            if isinstance(message, RunError):
                _log.error("step_not_weighed", run=self._run.name, why=str(message))
                outbox.end(message)
            else:
                outbox.send(message)
        if answers:
            # Trainers stand still for these. The thread that writes them to the streams gets the interpreter lock
            # now, and not in the middle of the next draw.
            time.sleep(_GIVE_WAY_SECONDS)

    def _digest_of(self, step: int) -> int | None:
        drawn = self._run.log.journal.drawn(step)
        return None if drawn is None else drawn.digest

    def close_overdue(self) -> None:
        """Closes the steps that a draw, or a trainer that asked for weights, has waited for too long. While every rank
        of the attempt is connected, their reports may still come (an evaluation can take long), and nothing is closed.
        """
        state, now = self._run.state(), self._clock()
        if self.draining or not len(self.ranks) or self.ranks.all_connected(state.attempts.world_size):
            self._waited_since.clear()
            return
        waits = {one for step in self.weights.awaited_steps() for one in state.weights_wait_for(step)}
        awaited = state.awaited_step()
        if awaited is not None and any(r.credit > 0 and r.cursor == state.next_step for r in self.ranks):
            waits.add(awaited)
        self._waited_since = {step: self._waited_since.get(step, now) for step in waits}
        for step, since in sorted(self._waited_since.items()):
            if now - since > state.spec.report_timeout:
                _log.warning("step_closed", run=self._run.name, step=step, reason="timeout")
                self.close_step(step, "timeout")
                self.tally.timed_out += 1

    def close_step(self, step: int, reason: str) -> None:
        state = self._run.state()
        if step >= state.next_step:
            raise Unready(f"step {step} is not drawn yet; the next step to draw is {state.next_step}")
        record = state.steps.get(step)
        if record is not None and not record.closed:
            self._run.write_and_wait([StepClosed(step, reason)])
            self.send_weights()

    def guard(self, outbox: Outbox, action: Callable[[], None]) -> None:
        """Ends the outbox with whatever `action` raises."""
        try:
            action()
        except Exception as error:
            if not isinstance(error, (RunError, StoreError)):
                _log.exception("stream_failed", run=self._run.name)
            self._leaving.pop(outbox, None)
            outbox.end(error)
