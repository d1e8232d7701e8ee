"""What a session and its server owe each other: batches received and not handed out, reports not acknowledged.

Pure: no threads, no clock, no connection. The session calls it under its lock and acts on what it returns. A method
that raises has changed nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from steelyard.batch import Batch
from steelyard.errors import Internal, SteelyardError
from steelyard.messages import Outgoing

# Steps whose reports are tracked, at least: enough to explain a wait, bounded where a trainer never reports.
_TRACKED = 1024


@dataclass(slots=True, eq=False)
class Answer:
    """The weights that one report asked for: there, failed, or neither yet."""

    step: int
    count: int
    weights: npt.NDArray[np.float32] | None = None
    error: SteelyardError | None = None

    @property
    def done(self) -> bool:
        return self.weights is not None or self.error is not None


@dataclass(slots=True, eq=False)
class Owed:
    """A report that the server has not answered in full. Positions are those of the global batch."""

    request: Outgoing
    step: int
    offset: int
    count: int
    size: int
    """Bytes, within a few."""
    slice: tuple[int, int]
    """Offset and length of the slice that it is of."""
    answer: Answer | None = None
    """Set where the report asks for weights."""
    acknowledged: bool = False

    def matches(self, step: int, offset: int, count: int) -> bool:
        return self.step == step and self.offset == offset and self.count == count


@dataclass(slots=True)
class Ledger:
    """The state of one session. `check` raises where its invariants are broken."""

    max_reports: int = 1024
    max_bytes: int = 64 << 20
    start_step: int = 0
    prefetch: int = 1
    buffered: deque[Batch] = field(default_factory=deque)
    """Received and not handed out, in step order."""
    next_step: int = 0
    """The next step to hand out."""
    late_reports: int = 0
    _outstanding: int = 0  # credit granted to the present connection and not used by it
    _owed: deque[Owed] = field(default_factory=deque)
    _bytes: int = 0
    _unacknowledged: int = 0
    # Steps handed out and not reported in full by this session: None, or which positions of the slice are reported.
    _open: dict[int, npt.NDArray[np.bool_] | None] = field(default_factory=dict)
    _announced: set[int] = field(default_factory=set)

    # -- batches ---------------------------------------------------------------------------------------------------

    @property
    def expected_step(self) -> int:
        """The first step whose batch has not been received."""
        return self.next_step + len(self.buffered)

    def begin(self, start_step: int, prefetch: int, credit: int) -> int:
        """The first connection serves from `start_step`, with `credit` granted. Returns the credit to add."""
        self.start_step = self.next_step = start_step
        self.prefetch = prefetch
        self._outstanding = credit
        return self.grant()

    def resume(self, credit: int) -> int:
        """A further connection, with `credit` granted. Returns the credit to add."""
        self._outstanding = credit
        return self.grant()

    def credit_to_join(self) -> int:
        """What a join may grant: the room that is left."""
        return max(self.prefetch - len(self.buffered), 0)

    def receive(self, batch: Batch) -> None:
        """A batch came. Internal: a gap in the steps, or a batch beyond the credit."""
        if batch.step != self.expected_step:
            raise Internal(
                f"expected the batch of step {self.expected_step} next, the server sent step {batch.step}"
            )
        if self._outstanding < 1:
            raise Internal(f"the server sent the batch of step {batch.step} without credit for it")
        self._outstanding -= 1
        self.buffered.append(batch)

    def take(self) -> Batch | None:
        """Hands out the next batch, None where none is here."""
        if not self.buffered:
            return None
        batch = self.buffered.popleft()
        self.next_step = batch.step + 1
        if len(batch):
            self._open[batch.step] = None
            if len(self._open) > max(_TRACKED, self.prefetch):
                self._forget(next(iter(self._open)))
        return batch

    def grant(self) -> int:
        """The credit to send now: what was freed, once it is worth a message."""
        room = self.prefetch - len(self.buffered) - self._outstanding
        if room <= 0 or (room < self.prefetch // 4 and self._outstanding > 0):
            return 0
        self._outstanding += room
        return room

    # -- reports ---------------------------------------------------------------------------------------------------

    def has_room(self, size: int) -> bool:
        """Whether a report of `size` bytes may be sent now. One alone always may."""
        return not self._owed or (len(self._owed) < self.max_reports and self._bytes + size <= self.max_bytes)

    def submit(self, owed: Owed) -> None:
        """The report is to be sent, and kept until it is answered."""
        self._owed.append(owed)
        self._bytes += owed.size
        self._unacknowledged += 1
        self._mark(owed, reported=True)

    def acknowledge(self, step: int, offset: int, count: int, *, late: bool) -> None:
        """A report is durable, or came late. Internal: no such report is owed."""
        owed = self._find(step, offset, count, "acknowledged")
        self._answered(owed)
        self.late_reports += late
        if late and owed.answer is not None and not owed.answer.done:
            # Its losses are left out of the step, so they weigh nothing.
            owed.answer.weights = np.zeros(count, np.float32)
        self._settle(owed)

    def refuse(self, step: int, offset: int, count: int, error: SteelyardError) -> bool:
        """A report was refused and is not applied. Whether its answer carries the error (nothing does otherwise)."""
        owed = self._find(step, offset, count, "refused")
        self._answered(owed)
        if error.code != "ALREADY_EXISTS":
            self._mark(owed, reported=False)
        if owed.answer is not None:
            owed.answer.error = error
        self._settle(owed)
        return owed.answer is not None

    def weigh(self, step: int, offset: int, weights: npt.NDArray[np.float32]) -> None:
        """The weights of a report came. Nobody may wait for them: a late report, or one that was sent again."""
        for owed in self._owed:
            waits = owed.answer is not None and not owed.answer.done
            if waits and owed.matches(step, offset, len(weights)):
                assert owed.answer is not None
                owed.answer.weights = weights
                self._settle(owed)
                return

    def fail(self, error: SteelyardError) -> None:
        """The session has ended: nothing that is still asked for will come."""
        for owed in self._owed:
            if owed.answer is not None and not owed.answer.done:
                owed.answer.error = error

    def announce(self, step: int) -> None:
        """The report of `step` is being made by another thread."""
        if step in self._open:
            self._announced.add(step)

    @property
    def unacknowledged(self) -> int:
        return self._unacknowledged

    @property
    def owed_bytes(self) -> int:
        return self._bytes

    def to_send_again(self) -> Iterator[Outgoing]:
        """What a new connection must carry, in the order in which it was first sent."""
        for owed in self._owed:
            self._unacknowledged += owed.acknowledged
            owed.acknowledged = False
            yield owed.request

    def is_acknowledged(self, step: int) -> bool:
        """Whether no report of `step` waits for its acknowledgement."""
        return not any(owed.step == step and not owed.acknowledged for owed in self._owed)

    # -- staleness -------------------------------------------------------------------------------------------------

    def needed_step(self, staleness: int) -> int | None:
        """The newest step whose reports the next draw needs, None where it needs none of this session."""
        step = self.next_step - 1 - staleness
        return step if step >= self.start_step else None

    def unreported(self, step: int) -> bool:
        """Whether `step` was handed out, and this session neither reported all of it nor announced that it will."""
        return step in self._open and step not in self._announced

    def oldest_unreported(self) -> int | None:
        """The first step for which `unreported` holds."""
        return min((step for step in self._open if step not in self._announced), default=None)

    def is_open(self, step: int) -> bool:
        """Whether `step` was handed out and part of it is not reported."""
        return step in self._open

    def would_complete(self, step: int, length: int, first: int, count: int) -> bool:
        """Whether these positions are all that is unreported of the slice of `step`, which has `length`."""
        mask = self._open.get(step)
        if mask is None:
            return count == length
        missing = ~mask
        missing[first : first + count] = False
        return not missing.any()

    @property
    def unreported_steps(self) -> int:
        return len(self._open)

    def check(self) -> None:
        """AssertionError with a reason where an invariant is broken."""
        steps = [batch.step for batch in self.buffered]
        assert steps == list(range(self.next_step, self.next_step + len(steps))), (
            f"steps out of order: {steps}"
        )
        assert self._outstanding >= 0, f"credit is overdrawn: {self._outstanding}"
        assert len(self.buffered) + self._outstanding <= self.prefetch, (
            "more credit granted than there is room"
        )
        assert self._bytes == sum(owed.size for owed in self._owed), "the bytes owed do not add up"
        assert self._unacknowledged == sum(not owed.acknowledged for owed in self._owed), (
            "the reports that are not acknowledged do not add up"
        )
        assert all(step < self.next_step for step in self._open), "a step is open that was not handed out"
        assert self._open.keys() >= self._announced, "a step is announced that is not open"

    # -- inside ----------------------------------------------------------------------------------------------------

    def _find(self, step: int, offset: int, count: int, word: str) -> Owed:
        for owed in self._owed:
            if not owed.acknowledged and owed.matches(step, offset, count):
                return owed
        raise Internal(
            f"the server {word} {count} losses of step {step} from {offset}, which were not reported to it"
        )

    def _answered(self, owed: Owed) -> None:
        owed.acknowledged = True
        self._unacknowledged -= 1

    def _settle(self, owed: Owed) -> None:
        if owed.acknowledged and (owed.answer is None or owed.answer.done):
            if self._owed[0] is owed:  # answers come in the order of the reports
                self._owed.popleft()
            else:
                self._owed.remove(owed)
            self._bytes -= owed.size

    def _mark(self, owed: Owed, *, reported: bool) -> None:
        """Notes which positions of the slice are reported. A step that is reported in full is no longer open."""
        offset, length = owed.slice
        first, last = owed.offset - offset, owed.offset - offset + owed.count
        if not reported:
            self._announced.discard(owed.step)
            self._open.setdefault(owed.step, np.ones(length, np.bool_))
        if owed.step not in self._open:
            return
        if reported and owed.count == length:
            self._forget(owed.step)
            return
        mask = self._open[owed.step]
        if mask is None:
            mask = self._open[owed.step] = np.zeros(length, np.bool_)
        mask[first:last] = reported
        if mask.all():
            self._forget(owed.step)

    def _forget(self, step: int) -> None:
        del self._open[step]
        self._announced.discard(step)
