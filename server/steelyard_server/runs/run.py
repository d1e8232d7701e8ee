"""A run that serves: the single writer of its journal, on its own thread.

This is the door: every method puts its work on the thread, where `Serving` (for trainers) and `Ownership` (for the
owner) do it on the `Journaled` state.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from steelyard_server.core.events import Event, Float32s, Ids
from steelyard_server.history.errors import RecordDamaged, StoreError
from steelyard_server.history.store import Store
from steelyard_server.log import logger
from steelyard_server.runs.audit import Unweighed
from steelyard_server.runs.errors import Missing, Superseded, Unavailable, Unready
from steelyard_server.runs.figures import Figures, figures_of
from steelyard_server.runs.journaled import CheckpointRule, Journaled
from steelyard_server.runs.limits import Limits
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.mailbox import Mailbox
from steelyard_server.runs.messages import Credit, Join, Outbox, Report, Slice
from steelyard_server.runs.ownership import Ownership, RunInfo
from steelyard_server.runs.reader import JournalReader
from steelyard_server.runs.retention import Retention
from steelyard_server.runs.serving import Serving
from steelyard_server.runs.state import RunState
from steelyard_server.runs.stats import RunStats

T = TypeVar("T")

_log = logger(__name__)

_CALL_SECONDS = 30.0
_TRIES = 3
_LONG_CALL_SECONDS = 300.0
"""For calls that read the journal from a checkpoint on, or that may weigh every example anew."""


class Run:
    """Methods may be called from any thread. `reconcile` says what the dataset has become and the run does not know."""

    def __init__(
        self,
        store: Store,
        open_log: Callable[[], RunLog],
        name: str,
        *,
        rule: CheckpointRule,
        reconcile: Callable[[RunState], Sequence[Event]],
        max_draws: int = Limits().max_draws_per_call,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._store = store
        self._open_log = open_log
        self._mailbox = Mailbox(f"run {name!r}", self._tick, after_turn=self._turn_over)
        self._run = Journaled(
            store,
            open_log,
            name,
            rule=rule,
            reconcile=reconcile,
            clock=clock,
            post=self._mailbox.post,
            on_lost=self._lost,
            on_replaced=self._replaced,
        )
        self._serving = Serving(self._run, clock, max_draws)
        self._owner = Ownership(self._run, self._serving)
        self._mailbox.start()
        self._mailbox.post(self._run.load)

    # ---- the trainers' stream ----

    def join(self, join: Join, outbox: Outbox) -> None:
        """Seats a rank; answers with Joined, or ends the outbox with what stands against it."""
        if not self._mailbox.post(
            lambda: self._serving.guard(outbox, lambda: self._serving.join(join, outbox))
        ):
            outbox.end(Unavailable(f"run {self._name!r} is closed; join again"))

    def take(self, outbox: Outbox, messages: Sequence[Report | Credit]) -> None:
        """What a trainer sent, in its order; messages that came together are best handed on together."""
        self._mailbox.post(partial(self._serving.take, outbox, messages))

    def credit(self, outbox: Outbox, batches: int) -> None:
        self.take(outbox, [Credit(batches)])

    def report(self, outbox: Outbox, report: Report) -> None:
        self.take(outbox, [report])

    def leave(self, outbox: Outbox) -> None:
        """The stream is over; its seat is free again."""
        self._mailbox.post(lambda: self._serving.leave(outbox))

    # ---- calls ----

    def info(self) -> RunInfo:
        return self._call(self._owner.info)

    def stats(self) -> RunStats:
        return self._call(self._owner.stats)

    def figures(self) -> Future[Figures]:
        """What is looked at while it runs; the question costs the run's thread well under a millisecond. Unavailable
        once it is closed. Reads nothing from disk: a run that is not in memory answers Unavailable."""
        return self._mailbox.ask(self._figures)

    def history(self, ids: Ids) -> list[list[tuple[int, float]]]:
        """The last K (step, loss) of each id, oldest first, with those reported and not folded yet."""
        return self._call(lambda: self._owner.history(ids))

    def column(self, name: str, ids: Ids | None) -> Float32s:
        return self._call(lambda: self._owner.column(name, ids))

    def batch(self, step: int) -> Slice:
        """What was served at `step`. Where its reports have left memory, they are read on the caller's thread."""
        for _ in range(_TRIES):
            found = self._call(lambda: self._owner.batch(step))
            if isinstance(found, Slice):
                return found
            # Went back meanwhile: the run is asked again, since the step may be gone or be another.
            with self._naming_damage():
                if found.needs_fold:
                    return self._folded(found)
                with contextlib.suppress(Superseded, Unready):
                    return found.weighed(self.reader())
        raise Unavailable(f"run {self._name!r} went back again and again while step {step} was read")

    def _folded(self, found: Unweighed) -> Slice:
        let_go = self._call(self._run.hold_past)
        try:
            return found.folded(self._open_log())
        finally:
            let_go()

    def retention(self) -> Retention:
        """What is kept of the run's past and what it costs. The rows are measured on the caller's thread: about a
        microsecond for each."""
        kept = self._call(self._owner.kept)
        log = self._open_log()
        return Retention(kept, log.checkpoint_bytes(), log.history_bytes())

    def reader(self) -> JournalReader:
        """Reads what is durable now, beside the run and without asking it. StoreError where it cannot be read."""
        with self._naming_damage():
            log = self._open_log()
            return JournalReader(self._name, log.journal, begins_at=log.begins_at())

    def observe(self, step: int | None, ids: Ids, signals: Mapping[str, Float32s]) -> None:
        self._call(lambda: self._owner.observe(step, ids, signals), _LONG_CALL_SECONDS)

    def close_step(self, step: int) -> None:
        self._call(lambda: self._serving.close_step(step, "owner"))

    def change_policy(
        self,
        draw: Mapping[str, Any] | None,
        weigher: Mapping[str, Any] | None,
        mix: Mapping[str, Any] | None = None,
    ) -> RunInfo:
        return self._call(lambda: self._owner.change_policy(draw, weigher, mix))

    def bookmark(self, name: str, step: int | None) -> int:
        return self._call(lambda: self._owner.bookmark(name, step))

    def delete_bookmark(self, name: str) -> None:
        self._call(lambda: self._owner.delete_bookmark(name))

    def rewind(self, to: int | str) -> RunInfo:
        return self._call(lambda: self._owner.rewind(to), _LONG_CALL_SECONDS)

    def fork(self, at: int | str, new: Callable[[RunState, RunLog, int], T]) -> T:
        """Calls `new` with the state at `at`, this run's log and the record up to which the history is stored there.

        All of it on the caller's thread: the run goes on meanwhile.
        """
        step, let_go = self._call(lambda: self._owner.hold(at))
        try:
            with self._naming_damage():
                log = self._open_log()
                past = log.past(step)
                return new(past.state, log, past.base)
        finally:
            let_go()

    def reconcile(self) -> Future[None]:
        """Takes over what the dataset has become; durable when the future is done. A run that cannot now, does so
        when it is loaded again, before it draws."""
        return self._mailbox.ask(self._take_news)

    def ask(self, question: Callable[[RunState], T]) -> T:
        """The answer of a pure function of the state."""
        return self._call(lambda: question(self._run.state()))

    # ---- life ----

    def drain(self) -> None:
        """No new batches; what was reported is made durable and acknowledged; then the streams are told to come back
        later, and a checkpoint is made."""
        self._mailbox.post(self._drain)

    def close(self, timeout: float) -> bool:
        """Stops the run after what is queued; False where it was still busy after `timeout` seconds."""
        return self._stop(timeout)

    def remove(self) -> bool:
        """Ends the streams because the run is deleted, and stops; False where it is still busy.

        Unavailable, and nothing is changed, where its turn did not come.
        """
        if not self._mailbox.closed:
            self._call(lambda: self._serving.end_streams(Missing(f"run {self._name!r} was deleted")))
        return self._stop(_CALL_SECONDS)

    def _stop(self, timeout: float) -> bool:
        """The thread first: it begins no more work beside itself then."""
        if not self._mailbox.close(timeout):
            return False
        try:
            self._run.stop_work()
        except Unavailable as error:
            _log.warning("run_still_busy", run=self._name, error=str(error))
            return False
        return True

    # ---- everything below runs on the run's own thread ----

    def _call(self, function: Callable[[], T], timeout: float = _CALL_SECONDS) -> T:
        with self._naming_damage():
            return self._mailbox.call(function, timeout)

    @contextlib.contextmanager
    def _naming_damage(self) -> Iterator[None]:
        try:
            yield
        except RecordDamaged as damage:
            raise damage.named(self._name) from damage

    def _figures(self) -> Figures:
        if not self._run.loaded:
            raise Unavailable(f"run {self._name!r} is not in memory")
        return figures_of(
            self._run.state(),
            self._serving.tally,
            len(self._serving.ranks),
            self._run.log.journal.next_seq - self._run.log.saved_seq,
            self._run.checkpointed_at,
        )

    def _lost(self) -> None:
        why = self._store.failing or self._store.full or "join again"
        self._serving.lost(Unavailable(f"run {self._name!r} could not be written; {why}"))

    def _replaced(self) -> None:
        self._serving.forget()

    def _turn_over(self) -> None:
        if self._run.loaded:
            self._serving.turn_over()

    def _take_news(self) -> None:
        if self._run.loaded:
            self._run.take_news()

    def _tick(self) -> None:
        if self._run.broken:
            return
        if not self._run.loaded:
            self._run.load()
            return
        try:
            self._serving.close_overdue()
            self._run.checkpoint_if_due()
        except StoreError as error:
            # The run is read again by whoever asks next, and then tries again.
            _log.warning("tick_failed", run=self._name, error=str(error))

    def _drain(self) -> None:
        self._serving.draining = True
        try:
            if self._run.loaded:
                self._run.settle()
                self._run.checkpoint_if_changed()
        finally:
            self._serving.end_streams(Unavailable("the server stops; join again"))
