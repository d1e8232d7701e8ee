"""A run's state in memory together with its log on disk, so that the two never disagree for longer than a write.

Belongs to the run's own thread. Where a write fails, its outcome is unknown: the state in memory is forgotten and read
from disk when it is next asked for.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from steelyard_server.core.events import AttemptBegan, Bookmarked, Event
from steelyard_server.history.errors import RecordDamaged, StoreError, StoreFull
from steelyard_server.history.ops import Op
from steelyard_server.history.store import Store
from steelyard_server.log import logger
from steelyard_server.policies.policy import Policy, PolicyError
from steelyard_server.runs.changes import outliving, policy_events
from steelyard_server.runs.durable import Durable
from steelyard_server.runs.errors import Unavailable, Unknown, Unready
from steelyard_server.runs.holds import Holds
from steelyard_server.runs.log import Pruning, RunLog
from steelyard_server.runs.saving import NotBegunError, StoppedError, Work, commits
from steelyard_server.runs.state import RunState

_PART_BYTES = 1 << 18
"""Of a checkpoint, in one commit: a commit of the run's own waits for that of a part."""
_PARTS_AT_ONCE = 16
"""In one commit, where the run stands still meanwhile."""
_GATHER_BYTES = 1 << 18
"""What a turn has gathered is handed to the store at this size, so that the disk works while the turn goes on."""

_STOP_SECONDS = 60.0
"""How long a save under way has to break off: it ends with the part that it writes."""
_SAVE_SECONDS = 600.0
"""How long is waited for a whole save; a column of 4 GB takes some ten."""
_RETRY_SECONDS = 10.0
"""From a checkpoint that found no room, or work that found no thread, to the next try."""

_LONG_SECONDS = 1.0
"""A reading from disk that took longer is told of."""

_NAMED = 8
"""How many bookmarks a message names."""

_log = logger(__name__)


_MUCH_REPLAYED = 8
"""A restart that replayed more than this part of the bound makes a checkpoint at once."""


@dataclass(frozen=True, slots=True)
class CheckpointRule:
    """A checkpoint is made when either bound is passed, so both bound what a restart has to replay."""

    seconds: float = 300.0
    journal_bytes: int = 256 << 20


class Journaled:
    """`on_lost` is called when the state was forgotten, `on_replaced` when another took its place by going back;
    `post` puts a callable on the run's thread."""

    def __init__(
        self,
        store: Store,
        open_log: Callable[[], RunLog],
        name: str,
        *,
        rule: CheckpointRule,
        reconcile: Callable[[RunState], Sequence[Event]],
        clock: Callable[[], float] = time.monotonic,
        post: Callable[[Callable[[], None]], object],
        on_lost: Callable[[], None],
        on_replaced: Callable[[], None],
    ) -> None:
        self.name = name
        self.log: RunLog
        self._store = store
        self._open_log = open_log
        self._rule = rule
        self._reconcile = reconcile
        self._clock = clock
        self._post = post
        self._on_lost = on_lost
        self._on_replaced = on_replaced
        self._state: RunState | None = None
        self._broken: Exception | None = None
        # Why it is not in memory, for callers; and which of these the log has told since it last was.
        self._obstacle = "nobody has asked for it so far"
        self._told: set[str] = set()
        self._last_checkpoint = clock()
        self.checkpointed_at = time.time()
        """Wall time: of the newest checkpoint, or of the reading from disk, if that was later. For eyes."""
        self._bytes_since_checkpoint = 0
        self._prune_wanted = False
        self._gathered: list[Op] = []
        self._gathered_bytes = 0
        self._durable = Durable()  # of what is gathered
        self._holds = Holds()
        self._work: Work | None = None
        self._pruned = threading.Event()
        self._pruned.set()
        self._no_checkpoint_before = self._no_work_before = self._last_checkpoint

    # ---- reading ----

    @property
    def loaded(self) -> bool:
        return self._state is not None

    @property
    def broken(self) -> bool:
        """Whether the run cannot be read from disk, for good."""
        return self._broken is not None

    def state(self) -> RunState:
        """The state, read from disk where it is not in memory. Raises what stands against that."""
        if self._state is None and self._broken is None:
            self.load()
        if self._broken is not None:
            raise self._broken.with_traceback(None)
        if self._state is None:
            raise Unavailable(f"run {self.name!r} is not loaded yet: {self._obstacle}; try again")
        return self._state

    def load(self) -> None:
        """Reads the run from disk. Where that fails for good, every later `state()` says so."""
        try:
            self.stop_work()
            # What was queued before a wait was given up may still be applied: the disk is read behind it.
            self._store.commit([])
            self.log = self._open_log()
            began = time.monotonic()
            self._state = self.log.load()
            seconds, replayed = time.monotonic() - began, self.log.replayed_bytes
            if replayed or seconds > _LONG_SECONDS:
                _log.info("run_loaded", run=self.name, seconds=round(seconds, 2), replayed_bytes=replayed)
            self._last_checkpoint, self._bytes_since_checkpoint = self._clock(), replayed
            if replayed > self._rule.journal_bytes // _MUCH_REPLAYED:
                # At once, and not when the interval is over once more: a server that is killed again before that would
                # replay all of it again, and more each time.
                self._last_checkpoint -= self._rule.seconds
            self.checkpointed_at = time.time()
            self.take_news()
            self._told.clear()
        except RecordDamaged as found:
            damage = found.named(self.name)
            _log.error("run_damaged", run=self.name, place=damage.place, why=damage.why)
            self._broken, self._state = damage, None
        except (StoreError, Unavailable) as error:
            self._hinder(self._store.failing or str(error))
        except PolicyError as error:
            _log.error("run_not_loaded", run=self.name, error=str(error))
            why = f"run {self.name!r} has a policy that this server does not know: {error}"
            self._broken, self._state = Unknown(f"{why}; it goes on where its methods are installed"), None
        except Exception as error:
            _log.exception("run_not_loaded", run=self.name)
            self._broken, self._state = error, None

    def _hinder(self, why: str) -> None:
        """For now. Every caller tries to load it anew, some many times a second: the log has each cause once."""
        if why not in self._told:
            self._told.add(why)
            _log.warning("run_not_loaded", run=self.name, error=why)
        self._obstacle, self._state = why, None

    def check_step(self, step: int) -> None:
        """Unready where the run cannot go back to `step`."""
        if not self._pruned.is_set():
            self.hand_over()
        if not self._pruned.wait(_STOP_SECONDS):
            raise Unavailable(
                f"run {self.name!r}: what is no longer retained was not removed within {_STOP_SECONDS:.0f} s; try again"
            )
        state, oldest = self.state(), self.log.oldest_step()
        if not self.log.returns_to(step, state):
            held = sorted((at, name) for name, at in state.bookmarks.items() if at < oldest)
            names = ", ".join(f"{name!r} at {at}" for at, name in held[:_NAMED])
            more = f" and {len(held) - _NAMED} more" if len(held) > _NAMED else ""
            raise Unready(
                f"expected a step between {oldest}, the oldest retained, and {state.next_step}, the next to draw"
                f"{f', or that of a bookmark ({names}{more})' if held else ''}; got {step}"
            )

    def hold_past(self) -> Callable[[], None]:
        """What is durable now can be read on any thread, beside the run, until the answer is called."""
        return self._holds.take()

    # ---- writing ----

    def write(self, events: Sequence[Event], applied: Callable[[], None] = lambda: None) -> Durable:
        """Applies `events` and gathers their records; the answer is reached, on the writer's thread, once they and all
        that was written before are durable. They are on their way to the disk after `hand_over`.

        `applied` is called between the two, for what need not wait for the disk.
        """
        durable = self._durable
        if not events:
            self.state()
            applied()
            return durable
        before = self._bytes_since_checkpoint
        with self._writing() as (state, _):
            ops = self._apply(state, events, applied)
        # One fence will do.
        self._gathered += ops[1:] if self._gathered[:1] == ops[:1] else ops
        self._gathered_bytes += self._bytes_since_checkpoint - before
        if self._gathered_bytes >= _GATHER_BYTES:
            self.hand_over()
        return durable

    def hand_over(self) -> None:
        """Gives the store what was gathered, as one write."""
        if not self._gathered and not self._durable.awaited:
            return
        log, durable = self.log, self._durable
        # A write of nothing too comes to nothing where one before it was refused.
        ops = self._gathered or [log.journal.fence()]
        self._forget_gathered()

        def settle(error: BaseException | None) -> None:
            if error is None:
                durable.reach()
            else:
                self._post(lambda: self._lost(log))

        try:
            self._store.write(ops, settle)
        except Exception:
            self._lost(log)
            raise

    def forget(self) -> None:
        """The state went on in a way that no event tells of: it is read from disk again."""
        log = self.log
        with contextlib.suppress(StoreError):
            self.hand_over()
        self._lost(log)

    def write_and_wait(self, events: Sequence[Event], *, frees: bool = False) -> None:
        """Applies and journals `events`; durable on return. `frees`: they lead to what makes room in the store."""
        self.hand_over()
        with self._writing() as (state, _):
            self._store.commit(self._apply(state, events), frees=frees)

    def settle(self) -> None:
        """On return everything written before is durable."""
        self._commit([])

    def take_news(self) -> None:
        """Takes over what the dataset has become; durable on return."""
        events = self._reconcile(self.state())
        if events:
            self.write_and_wait(events)

    def rewind(self, step: int, then: AttemptBegan, *, policy: Policy | None = None) -> None:
        """Takes the run back to `step` and goes on with `then`, and with `policy` where one is given, else with that
        of then. All of it is durable, or nothing. Waits for those who read what it undoes; Unavailable after 60 s."""
        # What a turn has gathered does not wait with it.
        self.hand_over()
        self._holds.await_none(self.name)
        self.stop_work()
        self.settle()
        past = self.log.past(step)
        gone = sorted(name for name, at in self.state().bookmarks.items() if at > step)
        events: list[Event] = [*outliving(past.state, self.state()), then]
        for event in events:
            past.state.apply(event)
        if policy is not None and policy.canonical() != past.state.policy.canonical():
            # Behind the others: the attempt closes steps, whose reports the columns of the policy are folded from.
            changes = policy_events(past.state, policy, self.log, past.base)
            for event in changes:
                past.state.apply(event)
            events += changes
        self._commit(self.log.rewind(past, events), frees=True)
        self._state = past.state
        self._on_replaced()
        self._begin(self._sweep())
        self.take_news()
        _log.info("run_rewound", run=self.name, step=step, bookmarks_undone=gone)

    def checkpoint(self) -> None:
        """Saves the state, removes what is no longer retained, and waits for both. Without room in the store, or a
        thread, it is not saved: the journal has it all."""
        self._await_work()
        error = self._wait_for(self._save(_PARTS_AT_ONCE * _PART_BYTES))
        if error is not None and not isinstance(error, StoreFull | NotBegunError):
            raise error
        self._await_work()
        self.prune()
        self._await_work()

    def checkpoint_if_changed(self) -> None:
        """As checkpoint, where something changed since the last one."""
        self._await_work()
        if self._bytes_since_checkpoint:
            self.checkpoint()

    def checkpoint_if_due(self) -> None:
        """Begins a checkpoint where one is due, beside the run; or to remove what is no longer retained."""
        now = self._clock()
        if self._work is not None or now < self._no_work_before:
            return
        bound = 0 if now - self._last_checkpoint > self._rule.seconds else self._rule.journal_bytes
        if now >= self._no_checkpoint_before and self._bytes_since_checkpoint > bound:
            self._begin(self._save(_PART_BYTES))
        elif self._prune_wanted:
            self.prune()

    def prune(self) -> None:
        """Begins to remove what retention no longer keeps, beside the run; later where somebody reads it now."""
        self._prune_wanted = bool(self._holds)
        if self._prune_wanted:
            return
        self.hand_over()
        try:
            pruning = self.log.pruning(self.state())
        except RecordDamaged as damage:
            # Nobody asked for what is damaged: it is reported when somebody does.
            _log.error("prune_skipped", run=self.name, place=damage.place, why=damage.why)
            return
        if pruning is not None:
            self._pruned.clear()
            self._begin(self._removal(pruning))

    def stop_work(self) -> None:
        """Breaks off what is done beside the run; on return nothing is written but by the run. Unavailable after 60 s.

        What a save had written until then nobody reads; it goes on from there no more.
        """
        work = self._work
        if work is not None:
            work.stop()
            self._wait_for(work, _STOP_SECONDS)

    # ---- beside the run ----

    def _save(self, part_bytes: int) -> Work:
        """Writes a checkpoint of the state as of now. In parts, between which other runs have their turn: nothing reads
        the chunks of one whose row is not there."""
        # What the state has of the journal is then on its way to the disk before any of this.
        self.hand_over()
        state, log = self.state(), self.log
        frozen, journaled = log.freeze(state), self._bytes_since_checkpoint
        fence = log.journal.fence()
        self._last_checkpoint = self._clock()
        now = time.time()
        frozen.begin(state)

        def steps() -> Iterator[None]:
            self._store.check_space(log.bytes_of(frozen))
            yield from commits(self._store, fence, log.loose(frozen), part_bytes, frees=False)
            self._store.commit([fence, log.row(frozen)])

        def end(error: BaseException | None) -> None:
            frozen.end(state, saved=error is None)
            if error is None:
                log.saved_seq = frozen.seq
                self.checkpointed_at = now
                self._bytes_since_checkpoint -= journaled
                self._prune_wanted = True
            elif isinstance(error, StoreFull):
                # The journal has it all: the run goes on, and saves when there is room.
                _log.error("checkpoint_skipped", run=self.name, error=str(error))
                self._no_checkpoint_before = self._clock() + _RETRY_SECONDS
            elif not isinstance(error, StoppedError):
                _log.warning("checkpoint_failed", run=self.name, error=str(error))
                self._lost(log)

        return Work(f"the checkpoint of run {self.name!r}", steps(), end)

    def _removal(self, pruning: Pruning) -> Work:
        log, part_bytes = self.log, _PART_BYTES
        fence = log.journal.fence()

        def steps() -> Iterator[None]:
            try:
                # First those who read the versions, so that none is left without them.
                self._store.commit(pruning.rows, frees=True)
            finally:
                self._pruned.set()
            yield
            try:
                self._store.check_space(log.bytes_of_merge(pruning), spare=True)
                for _ in commits(self._store, fence, log.merge(pruning), part_bytes, frees=False):
                    yield
                    # Others may take the room that there was.
                    self._store.check_space(part_bytes, spare=True)
            except StoreFull as error:
                # The segments have it all; what is removed next may make the room.
                _log.warning("merge_put_off", run=self.name, error=str(error))
                yield from commits(self._store, fence, log.unmerge(), part_bytes, frees=True)
            if self._holds:
                # Who began to read before the merge was done reads what it has made needless; who begins now does not.
                raise StoppedError(f"a past of run {self.name!r} is being read")
            yield from commits(self._store, fence, log.unread(pruning), part_bytes, frees=True)

        def end(error: BaseException | None) -> None:
            # Also where not even the first step was made.
            self._pruned.set()
            if isinstance(error, StoppedError):
                self._prune_wanted = True
            elif error is not None:
                _log.warning("prune_failed", run=self.name, error=str(error))
                self._lost(log)

        return Work(f"the removal of what run {self.name!r} no longer retains", steps(), end)

    def _sweep(self) -> Work:
        """Deletes what going back has left of the history."""
        log, fence = self.log, self.log.journal.fence()

        def end(error: BaseException | None) -> None:
            # What is left of it the next save and merge delete.
            if error is not None and not isinstance(error, StoppedError):
                _log.warning("sweep_failed", run=self.name, error=str(error))
                self._lost(log)

        steps = commits(self._store, fence, log.sweep(), _PART_BYTES, frees=True)
        return Work(f"the removal of what run {self.name!r} has undone", steps, end)

    def _begin(self, work: Work) -> None:
        self._work = work
        work.start(lambda: self._post(lambda: self._end(work)))

    def _await_work(self) -> None:
        """Waits for what is done beside the run, if anything is."""
        if self._work is not None:
            self.hand_over()
            self._wait_for(self._work)

    def _wait_for(self, work: Work, seconds: float = _SAVE_SECONDS) -> BaseException | None:
        """Waits for `work`, and begins it where that was not done; what it ended by."""
        if self._work is not work:
            self._work = work
            work.start(lambda: None)
        if not work.wait(seconds):
            raise Unavailable(f"{work.name} did not end within {seconds:.0f} s; try again")
        self._end(work)
        return work.error

    def _end(self, work: Work) -> None:
        """To be told on the run's thread, by whoever is first, that `work` has ended."""
        if self._work is work:
            self._work = None
            if isinstance(work.error, NotBegunError):
                _log.warning("work_put_off", run=self.name, error=str(work.error))
                self._no_work_before = self._clock() + _RETRY_SECONDS
            work.end(work.error)

    # ---- inside ----

    def _commit(self, ops: Sequence[Op], *, frees: bool = False) -> None:
        """Writes `ops` behind everything written before; on return they are durable, and so is all of that."""
        self.hand_over()
        with self._writing() as (_, log):
            self._store.commit([log.journal.fence(), *ops], frees=frees)

    def _apply(
        self, state: RunState, events: Sequence[Event], applied: Callable[[], None] = lambda: None
    ) -> list[Op]:
        for event in events:
            state.apply(event)
            # A name taken away may have been all that held an island of the journal.
            self._prune_wanted |= isinstance(event, Bookmarked) and event.step is None
        applied()
        before = self.log.journal.total
        ops = self.log.append(events)
        self._bytes_since_checkpoint += self.log.journal.total - before
        return ops

    @contextmanager
    def _writing(self) -> Iterator[tuple[RunState, RunLog]]:
        """Whatever goes wrong between applying events and handing them to the store, the disk is right."""
        state, log = self.state(), self.log
        try:
            yield state, log
        except Exception:
            # What was written before it is not concerned.
            with contextlib.suppress(StoreError):
                self.hand_over()
            self._lost(log)
            raise

    def _forget_gathered(self) -> None:
        self._gathered, self._gathered_bytes, self._durable = [], 0, Durable()

    def _lost(self, written: RunLog) -> None:
        """A write of `written` failed: what is in memory may not be on disk. Forgets it, unless that was done
        already."""
        if self._state is not None and written is self.log:
            _log.warning("run_reloads", run=self.name)
            self._state = None
            self._forget_gathered()
            self._on_lost()
