"""A run on disk: its journal, checkpoints and history taken together.

recovery = newest checkpoint + the journal after it; rewind(step) = newest checkpoint at or before the step + the
journal up to it, where the journal is then cut; fork = the same into a new run. What is kept for that is the journal of
the last retain_steps, and an island of it for each older bookmark (retention.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steelyard_server.core.events import (
    AttemptBegan,
    Bookmarked,
    ColumnSet,
    DatasetGrown,
    Event,
    Float32s,
    Ids,
    IdsRetired,
    LossesReported,
    RunCreated,
    SignalsObserved,
    StepClosed,
)
from steelyard_server.history.checkpoints import Checkpoint, Checkpoints
from steelyard_server.history.chunks import CHUNK, chunk_count, stored_at_most
from steelyard_server.history.errors import RecordDamaged
from steelyard_server.history.journal import Journal
from steelyard_server.history.losses import LossHistory
from steelyard_server.history.ops import Op
from steelyard_server.history.segments import Entries
from steelyard_server.history.store import Store
from steelyard_server.policies.columns import Derived, parse_derived
from steelyard_server.runs import snapshot
from steelyard_server.runs.errors import Unready
from steelyard_server.runs.frozen import Frozen, freeze
from steelyard_server.runs.retention import BookmarkCost, Kept, Plan, plan
from steelyard_server.runs.rules import is_weighed
from steelyard_server.runs.state import HistoryEntry, RunState
from steelyard_server.runs.steps import StepRecord

_IDS_PER_PAGE = 65536
_LOSSES_AT_ONCE = 1 << 18
"""Looked through for some ids; some 40 bytes of memory for each."""
_FIRST_CHECKPOINT = 1
"""The record of that of a fork: behind the one by which it was created."""


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """A run as it was when `step` was next: the state, and where its journal continues.

    `cut` is the number of the first record to undo; `survivors` are events from there on that are not undone by going
    back, as far as reports of earlier steps were taken: these, and what the dataset and its attempts became meanwhile.
    `chain` is the journal's before `cut` where only a checkpoint knows it: where what lies before is pruned. `base` is
    the record of the checkpoint that it was replayed from, 0 where there is none: the history up to there is stored,
    the rest is the state's.
    """

    state: RunState
    cut: int
    base: int
    survivors: Sequence[Event]
    chain: bytes | None


@dataclass(frozen=True, slots=True, eq=False)
class Pruning:
    """What is to be removed: `rows` first. Then nobody reads what only checkpoints that are not among `kept` did."""

    rows: Sequence[Op]
    kept: Sequence[int]
    examples: int


class RunLog:
    """Not thread-safe. Methods that return ops change nothing on disk until the caller has written them."""

    def __init__(self, store: Store, run_id: int, history_size: int, *, forked: bool = False) -> None:
        self._forked = forked
        self.replayed_bytes = 0
        """What the last load read from the journal: all that no checkpoint has."""
        self.saved_seq = 0
        """The checkpoint of which the state knows: what it has of the losses that one lacks is in `unsaved_history`.
        A newer one may be on disk already."""
        self.journal = Journal(store, run_id)
        self._checkpoints = Checkpoints(store, run_id)
        self._history = LossHistory(store, run_id, history_size)

    # ---- forward ----

    def create(self, created: RunCreated) -> tuple[RunState, list[Op]]:
        ops, _ = self.journal.append([created])
        return RunState(created), list(ops)

    def append(self, events: Sequence[Event]) -> list[Op]:
        ops, _ = self.journal.append(events)
        return list(ops)

    def freeze(self, state: RunState) -> Frozen:
        """The state to be saved by `loose` and then `row`, which may be called on another thread."""
        return freeze(state, self.journal.next_seq, self.journal.chain)

    def loose(self, frozen: Frozen) -> Iterator[Op]:
        """The ops of a checkpoint that count for nothing until its row is there. The checkpoint before must be durable.
        Holds little of them in memory at a time."""
        # Not upon what a checkpoint that was broken off has left.
        since = self._checkpoints.newest_seq()
        yield from self._history.append(frozen.seq, _plain(frozen.history), since)
        for name, indices in self._owed(frozen).items():
            column = frozen.columns[name]
            for index, values in column.chunks(indices):
                yield self._checkpoints.chunk(frozen.seq, name, index, values)

    def row(self, frozen: Frozen) -> Op:
        """The op that makes the checkpoint count."""
        rest, columns = frozen.rest, {name: column.values for name, column in frozen.columns.items()}
        return self._checkpoints.row(frozen.seq, frozen.step, frozen.chain, rest.meta, rest.blobs, columns)

    def bytes_of(self, frozen: Frozen) -> int:
        """What the checkpoint takes in the store at most, but for chunks that lose all their values meanwhile."""
        total = self._history.bytes_of(_plain(frozen.history), int(frozen.rest.meta["size"]))
        total += sum(blob.nbytes for blob in frozen.rest.blobs.values())
        for name, indices in self._owed(frozen).items():
            values = frozen.columns[name].values
            total += sum(stored_at_most(values[i * CHUNK : (i + 1) * CHUNK]) for i in indices)
        return total

    def _owed(self, frozen: Frozen) -> dict[str, Sequence[int]]:
        return self._checkpoints.owed(
            {name: column.values for name, column in frozen.columns.items()}, frozen.dirty
        )

    def pruning(self, state: RunState) -> Pruning | None:
        """How to remove what neither the last retain_steps nor a bookmark needs: by `rows`, which belong together, and
        behind them what `unread` gives. The journal counts as pruned at once. RecordDamaged where its list of holes is,
        and then nothing is removed.
        """
        wanted = self._plan(state)
        if not wanted.checkpoints:
            return None
        rows, kept = self._checkpoints.prune_rows(wanted.checkpoints)
        journal = self.journal.prune(wanted.start, list(wanted.islands.values()))
        return Pruning([self.journal.fence(), *rows, *journal], kept, state.examples.size)

    def merge(self, pruning: Pruning) -> Iterator[Op]:
        """Ops that bring the losses up to the newest checkpoint into the rows of the examples, where that pays; on any
        thread, one by one, and broken off anywhere."""
        newest = max(pruning.kept)
        if self._history.merge_is_due(newest, pruning.examples):
            yield from self._history.merge(newest, pruning.examples)

    def bytes_of_merge(self, pruning: Pruning) -> int:
        """What `merge` takes in the store, roughly; 0 where there is nothing to merge."""
        newest = max(pruning.kept)
        due = self._history.merge_is_due(newest, pruning.examples)
        return self._history.bytes_of_merge(newest, pruning.examples) if due else 0

    def unmerge(self) -> Iterator[Op]:
        """Ops that delete, one by one, what a merge that was broken off has written; on any thread."""
        yield from self._history.sweep_rows()

    def unread(self, pruning: Pruning) -> Iterator[Op]:
        """Ops that delete, one by one, what no checkpoint reads any more; on any thread. Reads every key of the run's
        checkpoints."""
        yield from self._checkpoints.prune_chunks(pruning.kept)
        yield from self._history.prune(pruning.kept)

    def load(self) -> RunState:
        """The state after the last durable event. RecordDamaged where a stored record fails its check."""
        self.journal.reload()
        state, start, chain = self._base(None)
        for _, event in self.journal.read(start, chain=chain):
            state.apply(event)
        self.replayed_bytes = self.journal.bytes_from(start)
        self.saved_seq = 0 if chain is None else start
        return state

    # ---- back ----

    def past(self, step: int) -> Past:
        """The run as it was when `step` was next, with the reports of earlier ones that came later. Replays from the
        newest checkpoint at or before the step and reads on to the end of its window. Everything appended must be
        durable.

        `step` is one that `returns_to` holds for. RecordDamaged where a record of it is damaged or missing.
        """
        cut = self._cut_of(step)
        state, start, chain = self._base(cut)
        base = 0 if chain is None else start
        for _, event in self.journal.read(start, cut, chain=chain):
            state.apply(event)
        if state.next_step != step:
            raise Unready(
                f"step {step} cannot be returned to: the run's journal holds steps up to {state.next_step}"
            )
        # Later reports are of steps that have expired: none was taken.
        end = self.journal.seq_of_step(step + state.spec.report_window)
        survivors = [event for _, event in self.journal.read(cut, end) if _survives(event, step)]
        for event in survivors:
            state.apply(event)
        return Past(state, cut, base, survivors, chain if start == cut else None)

    def weighed_record(self, step: int) -> StepRecord | None:
        """A drawn step as the run held it when it was weighed: folded again from the newest checkpoint before its draw.
        None where it is not weighed, or what leads there is pruned."""
        cut = self._cut_of(step)
        if self._checkpoints.newest(cut) is None and not self._begins_at_creation():
            return None
        state, start, chain = self._base(cut)
        end = self.journal.piece_end(start)
        if end <= cut:
            return None
        record: StepRecord | None = None
        for _, event in self.journal.read(start, end, chain=chain):
            state.apply(event)
            record = record or state.steps.get(step)
            if record is not None and is_weighed(state.rule_of(step), record):
                return record
        return None

    def rewind(self, past: Past, then: Sequence[Event]) -> list[Op]:
        """Cuts the journal where `past` says and appends its survivors and the events `then`, all in these ops. What
        the history has of what was undone is then to be deleted by `sweep`."""
        self.saved_seq = past.base
        return [
            *self.journal.cut(past.cut, [*past.survivors, *then], chain=past.chain),
            *self._checkpoints.drop_after(past.cut),
            *self._history.drop_after(past.base),
        ]

    def sweep(self) -> Iterator[Op]:
        """Ops that delete, one by one, the losses that are of no checkpoint; on any thread, while none is saved."""
        yield from self._history.sweep(self._checkpoints.newest_seq())

    def copy_history(self, other: RunLog, seq: int) -> Iterator[Op]:
        """Gives a run that is about to begin the history that this one had at its checkpoint at record `seq`."""
        return self._history.copy_to(other.journal.run_id, seq, _FIRST_CHECKPOINT)

    def adopt(self, created: RunCreated, state: RunState) -> tuple[Iterator[Op], Sequence[Op]]:
        """Begins this run with `state`: ops that count for nothing, one by one, and those by which it then begins. The
        history that it comes with must have been copied and be durable before the first of them is asked for."""
        began, _ = self.journal.append([created])
        seq, saved = self.journal.next_seq, snapshot.take(state)

        def loose() -> Iterator[Op]:
            yield from self._history.append(seq, _plain(state.unsaved_history), 0, beside=True)
            for name, values in saved.columns.items():
                for index in range(chunk_count(values.size)):
                    yield self._checkpoints.chunk(
                        seq, name, index, values[index * CHUNK : (index + 1) * CHUNK]
                    )

        row = self._checkpoints.row(
            seq, state.next_step, self.journal.chain, saved.meta, saved.blobs, saved.columns
        )
        return loose(), [*began, row]

    def replayed(self) -> Iterator[tuple[RunState, RunState]]:
        """(state, saved) for each checkpoint that the journal leads to: as it is folded from the checkpoint before,
        or from the beginning, and as it was saved. RecordDamaged where a record of it is damaged."""
        before = 0
        for seq, _ in self._checkpoints.list():
            if (before or self._begins_at_creation()) and seq <= self.journal.piece_end(before):
                state, start, chain = self._base(before)
                for _, event in self.journal.read(start, seq, chain=chain):
                    state.apply(event)
                yield state, self._base(seq)[0]
            before = seq

    # ---- queries ----

    def oldest_step(self) -> int:
        """The oldest step that can be returned to."""
        first = self.journal.first_seq()
        if first == 0 and not self._forked:
            return 0
        checkpoint = self._checkpoints.first_from(first)
        return 0 if checkpoint is None else checkpoint[1]

    def returns_to(self, step: int, state: RunState) -> bool:
        """Whether the run, which is in `state`, can be taken back to `step`."""
        return self.oldest_step() <= step <= state.next_step or step in state.bookmarks.values()

    def kept(self, state: RunState) -> Kept:
        """What is kept of the past of the run, which is in `state`. Reads four records a bookmark."""
        own = self._plan(state).own()
        first = self.journal.first_seq()
        return Kept(
            oldest_step=self.oldest_step(),
            journal_records=self.journal.next_seq - first,
            journal_bytes=self.journal.bytes_from(first),
            checkpoints=len(self._checkpoints.list()),
            bookmarks=[
                BookmarkCost(name, step, self.journal.bytes_between(*own.get(step, (0, 0))))
                for name, step in sorted(state.bookmarks.items())
            ],
        )

    def begins_at(self) -> int:
        """The first step of the run while it has drawn nothing: that which it was forked at, or 0."""
        kept = self._checkpoints.list() if self._forked else []
        return kept[0][1] if kept else 0

    def checkpoint_bytes(self) -> int:
        """What the checkpoints take in the store. From any thread; reads every one."""
        return self._checkpoints.stored_bytes()

    def history_bytes(self) -> int:
        """What the histories of the examples take in the store. From any thread; reads every one."""
        return self._history.stored_bytes()

    def history(self, ids: Ids, unsaved: Sequence[HistoryEntry]) -> list[list[tuple[int, float]]]:
        """The last K (step, loss) of each id, oldest first, with what no checkpoint has yet."""
        if not self._history.size:
            return [[] for _ in ids]
        counts, steps, losses = self._history.read(ids, self.saved_seq)
        rows = _split_rows(counts, steps, losses)
        at = {int(example): number for number, example in enumerate(ids)}
        asked = np.unique(ids)
        for group in _groups(unsaved):
            found = np.concatenate([entry.ids for entry in group])
            here = np.flatnonzero(_among(asked, found))
            if not len(here):
                continue
            steps = np.repeat([entry.step for entry in group], [len(entry.ids) for entry in group])[here]
            values = np.concatenate([entry.losses for entry in group])[here]
            for one, step, loss in zip(found[here].tolist(), steps.tolist(), values.tolist(), strict=True):
                rows[at[one]].append((step, loss))
        return [rows[at[int(example)]][-self._history.size :] for example in ids]

    def rebuilt_columns(self, derived: Derived, state: RunState, seq: int | None) -> dict[str, Float32s]:
        """The columns of `derived` folded from the last K losses of each example: those stored by the checkpoint at
        record `seq` (None: the one that the run's state knows of) and those of `state` that it lacks."""
        size, kept = state.examples.size, self._history.size
        columns = {name: np.full(size, np.nan, np.float32) for name in derived.columns}
        if derived.signal != "loss" or not kept:
            return columns
        unsaved = _by_id(state.unsaved_history)
        for start in range(0, size, _IDS_PER_PAGE):
            page = np.arange(start, min(start + _IDS_PER_PAGE, size), dtype=np.int64)
            counts, _, stored = self._history.read(page, self.saved_seq if seq is None else seq)
            low, high = np.searchsorted(unsaved.ids, (start, start + len(page)))
            ids = np.concatenate([np.repeat(page, counts), unsaved.ids[low:high].astype(np.int64)])
            losses = np.concatenate([stored, unsaved.losses[low:high]])
            counted = np.isfinite(losses) & (_from_end(ids) < kept)
            derived.fold(columns, ids[counted], losses[counted])
        return columns

    # ---- inside ----

    def _base(self, seq: int | None) -> tuple[RunState, int, bytes | None]:
        """The newest saved state at or before record `seq`, the first record that it lacks, and the chain there."""
        checkpoint: Checkpoint | None = self._checkpoints.newest(seq)
        if checkpoint is not None:
            state = snapshot.restore(*self._checkpoints.load(checkpoint), give=True)
            return state, checkpoint.seq, checkpoint.chain
        if not self._begins_at_creation():
            raise RecordDamaged(
                f"run {self.journal.run_id}", f"there is no checkpoint at or below journal record {seq}"
            )
        created = next(iter(self.journal.read(0, 1)))[1]
        assert isinstance(created, RunCreated), created
        return RunState(created), 1, None

    def _begins_at_creation(self) -> bool:
        """Whether the journal can be replayed from its first record: a fork's begins with a checkpoint instead."""
        return not self._forked and self.journal.lowest_seq() == 0

    def _cut_of(self, step: int) -> int:
        """The record of the draw of `step`; where the step is the next one, the record to come."""
        cut = self.journal.seq_of_step(step)
        if cut is None and step < self.journal.next_step():
            raise RecordDamaged(f"run {self.journal.run_id}, the draw of step {step}", "it is missing")
        return self.journal.next_seq if cut is None else cut

    def _plan(self, state: RunState) -> Plan:
        floor = max(0, state.next_step - state.spec.retain_steps)

        def end_of(step: int, base: int) -> int:
            window = self.journal.seq_of_step(step + state.spec.report_window)
            piece = self.journal.piece_end(base)
            return piece if window is None else min(window, piece)

        return plan(
            self._checkpoints.list(), self.journal.first_seq(), floor, state.bookmarks.values(), end_of
        )


def _survives(event: Event, step: int) -> bool:
    match event:
        case LossesReported() | StepClosed():
            return event.step < step
        case SignalsObserved(at):
            return at is not None and at < step
        case ColumnSet():
            # A derived column is set where a policy change folds the history into it: with the policy, it goes.
            return parse_derived(event.name) is None
        case DatasetGrown() | IdsRetired() | AttemptBegan():
            return True
        case Bookmarked(_, at):
            return at is None or at <= step
        case _:
            return False


def _plain(entries: Sequence[HistoryEntry]) -> Entries:
    return [(entry.step, entry.ids, entry.losses) for entry in entries]


def _groups(entries: Sequence[HistoryEntry]) -> Iterator[Sequence[HistoryEntry]]:
    """In their order, so many at a time that it does not matter how small each is."""
    group, size = list[HistoryEntry](), 0
    for entry in entries:
        group.append(entry)
        size += len(entry.ids)
        if size >= _LOSSES_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _among(asked: Ids, ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Which of `ids` stand in `asked`, ascending. In place of np.isin, which would sort all of them."""
    if not len(asked):
        return np.zeros(len(ids), np.bool_)
    place = np.minimum(np.searchsorted(asked, ids), len(asked) - 1)
    found: npt.NDArray[np.bool_] = asked[place] == ids
    return found


def _by_id(entries: Sequence[HistoryEntry]) -> HistoryEntry:
    """All in one, ascending; those of an id in fold order."""
    ids = np.concatenate([np.empty(0, np.uint32), *(entry.ids for entry in entries)])
    losses = np.concatenate([np.empty(0, np.float32), *(entry.losses for entry in entries)])
    order = np.argsort(ids, kind="stable")
    return HistoryEntry(0, ids[order], losses[order])


def _from_end(ids: Ids) -> npt.NDArray[np.int64]:
    """How often the id of each position stands behind it."""
    order = np.argsort(ids, kind="stable")
    ranked = ids[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ids) else order
    behind = np.empty(len(ids), np.int64)
    behind[order] = np.repeat(last, np.diff(last, prepend=-1)) - np.arange(len(ids))
    return behind


def _split_rows(
    counts: npt.NDArray[np.int64], steps: npt.NDArray[np.uint64], losses: Float32s
) -> list[list[tuple[int, float]]]:
    ends = np.cumsum(counts)
    return [
        [(int(steps[k]), float(losses[k])) for k in range(end - count, end)]
        for end, count in zip(ends.tolist(), counts.tolist(), strict=True)
    ]
