"""What the callers' threads and the stream's thread of one session share, under one lock.

The stream's thread brings what the server sends (`Owner` of steelyard.stream); the callers take batches, submit reports
and wait. Both decide under the lock; arrays are converted and connections are made outside it. Every wait is for a
change, up to a deadline.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from steelyard import wire
from steelyard.batch import Batch
from steelyard.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ReportRefused,
    SessionClosed,
    StalenessError,
    SteelyardError,
    Unavailable,
    code_name,
)
from steelyard.info import Staleness, staleness_of
from steelyard.ledger import Answer, Ledger, Owed
from steelyard.messages import Outgoing, unpack_batch
from steelyard.missing import warn_of
from steelyard.options import SessionOptions, default_prefetch
from steelyard.structs import from_struct
from steelyard.v1 import runs_pb2, trainer_pb2
from steelyard.weighing import Rules

_LOG = logging.getLogger("steelyard")

# Seconds for which a seat that is taken is asked for again: in 15 the server finds out that its holder's connection is
# dead (server.py), so who holds it after these lives.
_SEAT_SECONDS = 30.0
_PATIENCE = 2.0
"""Seconds that weights are waited for before this rank's own missing report is taken for the reason: the owner may have
closed that step, of which a trainer is not told."""

Send = Callable[[Outgoing], None]


class Membership:
    """One rank's place in a run. `send` puts a message on the present connection without waiting."""

    def __init__(self, options: SessionOptions, session_id: str, send: Send) -> None:
        self.options = options
        self._session_id = session_id
        self._send = send
        self._lock = threading.Lock()
        # One condition for each thing that is waited for: who waits for a batch is not woken by acknowledgements. What
        # concerns everybody (a refusal, the connection, the end) wakes all.
        self._joining = threading.Condition(self._lock)
        self._batches = threading.Condition(self._lock)
        self._answers = threading.Condition(self._lock)
        self._acknowledgements = threading.Condition(self._lock)
        # All that follows is changed under the lock.
        self.ledger = Ledger(prefetch=options.prefetch or 1)
        self.joined: trainer_pb2.Joined | None = None
        self.rules: Rules | None = None
        self.waited = 0.0
        self.last_wait = 0.0
        self._refusals: deque[ReportRefused] = deque()
        self._missing: deque[runs_pb2.MissingInput] = deque()  # of which the caller is not warned yet
        self._connected = False
        self._trouble: tuple[float, SteelyardError] | None = (
            None  # since when the connection is down, and why
        )
        self._over = False
        self._error: SteelyardError | None = None  # why it is over, where not by the caller's wish
        self._credit_joined = 0
        self._seat_taken_since: float | None = None  # for the stream's thread alone

    @property
    def staleness(self) -> Staleness:
        assert self.joined is not None
        return staleness_of(self.joined.spec)

    @property
    def left(self) -> bool:
        """Whether the session is over by the caller's wish."""
        return self._over and self._error is None

    # -- the callers' threads --------------------------------------------------------------------------------------

    def await_join(self, limit: float) -> None:
        """Waits until the server has answered the join. What ended the session, Unavailable or DeadlineExceeded."""
        with self._lock:
            deadline = time.monotonic() + limit
            while self.joined is None:
                self._check_open()
                if self._wait(self._joining, deadline):
                    continue
                text = f"joining {self.options.name}: no answer within {limit:g} s"
                if self._trouble is not None:
                    if isinstance(self._trouble[1], AlreadyExists):
                        raise _seat_taken(self._trouble[1], limit)
                    raise Unavailable(f"{text}; last error: {self._trouble[1]}")
                raise DeadlineExceeded(
                    f"{text}; the server took the connection and has not answered the join"
                )

    def next_batch(self, limit: float) -> Batch:
        """The next batch. Session.next says what is raised."""
        with self._lock:
            began = time.monotonic()
            while True:
                self._check_open()
                batch = self.ledger.take()
                if batch is not None:
                    self._send_credit(self.ledger.grant())
                    self.last_wait = time.monotonic() - began
                    self.waited += self.last_wait
                    return batch
                self._check_staleness()
                if not self._wait(self._batches, began + limit):
                    raise DeadlineExceeded(self._why_no_batch(limit))

    def warn(self) -> None:
        """Warns the caller of what the server has said is missing."""
        while self._missing:
            with self._lock:
                one = self._missing.popleft() if self._missing else None
            if one is not None:
                warn_of(self.options.run, one, stacklevel=4)

    def submit(self, owed: Owed, limit: float) -> None:
        """Sends a report, and keeps it until it is answered. Waits while too many are unacknowledged."""
        ledger = self.ledger
        with self._lock:
            deadline = time.monotonic() + limit
            while True:
                self._check_open()
                if ledger.has_room(owed.size):
                    break
                if not self._wait(self._acknowledgements, deadline):
                    raise DeadlineExceeded(
                        f"{self.options.name}: the report of step {owed.step} was not sent within {limit:g} s, because "
                        f"{self._unacknowledged()} before it{self._about_connection()}"
                    )
            if not ledger.start_step <= owed.step < ledger.next_step:
                raise InvalidArgument(
                    f"{self.options.name}: expected a batch that this session handed out (steps {ledger.start_step} to "
                    f"{ledger.next_step - 1}), got one of step {owed.step}"
                )
            ledger.submit(owed)
            if self._connected:
                self._send(owed.request)

    def await_answer(self, answer: Answer, limit: float) -> npt.NDArray[np.float32]:
        """The weights of an answer. Its error, or DeadlineExceeded."""
        with self._lock:
            deadline = time.monotonic() + limit
            patient = min(deadline, time.monotonic() + _PATIENCE)
            while not answer.done:
                if self._wait(self._answers, patient):
                    continue
                self._check_order(answer.step)
                if patient < deadline:
                    patient = deadline
                else:
                    raise DeadlineExceeded(
                        f"{self.options.name}: no weights of step {answer.step} within {limit:g} s. They need the "
                        f"losses of all {self.options.world_size} ranks{self._of_steps_before(answer.step)}; this one "
                        f"has reported {answer.count} of them{self._about_connection()}"
                    )
        if answer.error is not None:
            raise copy.copy(answer.error)
        assert answer.weights is not None
        return answer.weights

    def await_acknowledgements(self, limit: float) -> None:
        """Waits until no report is unacknowledged. DeadlineExceeded says how many are."""
        with self._lock:
            deadline = time.monotonic() + limit
            while True:
                self._check_open()
                if self.ledger.unacknowledged == 0:
                    return
                if not self._wait(self._acknowledgements, deadline):
                    raise DeadlineExceeded(
                        f"{self.options.name}: after {limit:g} s {self._unacknowledged()}{self._about_connection()}"
                    )

    def unacknowledged(self) -> int:
        with self._lock:
            return self.ledger.unacknowledged

    def announce(self, step: int) -> None:
        with self._lock:
            self.ledger.announce(step)

    def would_complete(self, step: int, length: int, first: int, count: int) -> bool:
        with self._lock:
            return self.ledger.would_complete(step, length, first, count)

    # -- the stream's thread ---------------------------------------------------------------------------------------

    def joining(self) -> trainer_pb2.TrainerMessage:
        options = self.options
        with self._lock:
            join = trainer_pb2.Join(
                run=options.run,
                rank=options.rank,
                world_size=options.world_size,
                replica=options.replica,
                attempt=options.attempt or "",
                session=self._session_id,
                fingerprint=options.fingerprint,
                credit=self.ledger.credit_to_join(),
            )
            if options.start_step is not None:
                join.start_step = options.start_step
            if self.joined is not None:
                join.resume_step = self.ledger.expected_step
            self._credit_joined = join.credit
        return trainer_pb2.TrainerMessage(join=join)

    def received(self, response: trainer_pb2.RunMessage) -> None:
        kind = response.WhichOneof("message")
        if kind == "joined":
            self._receive_joined(response.joined)
        elif kind == "batch":
            self._receive_batch(response.batch)
        elif kind == "acknowledgement":
            self._receive_acknowledgement(response.acknowledgement)
        elif kind == "refusal":
            self._receive_refusal(response.refusal)
        elif kind == "weights":
            self._receive_weights(response.weights)
        elif kind == "missing_input":
            with self._lock:
                self._missing.append(response.missing_input)
        # Anything else is of a newer server, which may not rely on its being understood.

    def broke(self, error: SteelyardError) -> None:
        with self._lock:
            self._connected = False
            since = time.monotonic() if self._trouble is None else self._trouble[0]
            first = self._trouble is None
            self._trouble = (since, error)
            self._wake_all()
        if first:
            _LOG.info("%s: no connection, trying again: %s", self.options.name, error)

    def may_pass(self, error: SteelyardError) -> bool:
        # The process before this one may be gone without a word (its machine died, its network swallows packets): its
        # seat is free once the server has found out. Who was seated already, has lost the seat to a newer process.
        if not isinstance(error, AlreadyExists) or self.joined is not None:
            return False
        now = time.monotonic()
        if self._seat_taken_since is None:
            self._seat_taken_since = now
            _LOG.warning(
                "%s: %s. Waiting %g s at most for the end of that session, in case that its process is gone",
                self.options.name,
                error,
                _SEAT_SECONDS,
            )
        return now - self._seat_taken_since < _SEAT_SECONDS

    def ended(self, error: SteelyardError | None) -> None:
        """Also by the caller's thread, with None, when it closes the session. The first word counts."""
        with self._lock:
            if self._over:
                return
            if isinstance(error, AlreadyExists) and self._seat_taken_since is not None:
                error = _seat_taken(error, time.monotonic() - self._seat_taken_since)
            self._over, self._error, self._connected = True, error, False
            closed = SessionClosed(f"{self.options.name}: the session was closed before the weights came")
            self.ledger.fail(error or closed)
            self._wake_all()

    def _receive_joined(self, joined: trainer_pb2.Joined) -> None:
        with self._lock:
            if self.joined is None:
                self.rules = Rules(from_struct(joined.spec.policy.weigh), joined.weighing, joined.start_step)
                prefetch = self.options.prefetch or default_prefetch(staleness_of(joined.spec))
                credit = self.ledger.begin(joined.start_step, prefetch, self._credit_joined)
                self.joined = joined
            elif joined.start_step == self.ledger.expected_step:
                assert self.rules is not None
                # The policy may have changed while there was no connection; a batch that has another one says so.
                weigher = from_struct(joined.spec.policy.weigh)
                self.rules.change(weigher, joined.weighing, joined.start_step)
                credit = self.ledger.resume(self._credit_joined)
            else:
                raise Internal(
                    f"{self.options.name}: asked to go on from step {self.ledger.expected_step}, the server goes on "
                    f"from step {joined.start_step}"
                )
            self._connected, self._trouble = True, None
            for request in self.ledger.to_send_again():
                self._send(request)
            self._send_credit(credit)
            self._wake_all()

    def _receive_batch(self, message: trainer_pb2.Batch) -> None:
        try:
            batch = unpack_batch(message, self.options.rank, self.options.world_size)
        except ValueError as error:
            raise Internal(f"{self.options.name}: batch of step {message.step}: {error}") from error
        with self._lock:
            if message.HasField("policy") and message.policy.HasField("weigh"):
                assert self.rules is not None
                self.rules.change(from_struct(message.policy.weigh), message.weighing, batch.step)
            self.ledger.receive(batch)
            self._batches.notify_all()

    def _receive_acknowledgement(self, message: trainer_pb2.Acknowledgement) -> None:
        late = message.disposition == trainer_pb2.DISPOSITION_LATE
        with self._lock:
            first = late and self.ledger.late_reports == 0
            self.ledger.acknowledge(message.step, message.offset, message.count, late=late)
            self._acknowledgements.notify_all()
            if late:  # it weighs nothing, which answers who waits for its weights
                self._answers.notify_all()
        if first:
            _LOG.warning(
                "%s: the report of step %d came after the step was closed and is not folded; further ones are "
                "counted in Session.late_reports and not logged",
                self.options.name,
                message.step,
            )

    def _receive_refusal(self, message: trainer_pb2.Refusal) -> None:
        error = ReportRefused(
            f"{self.options.name}: the report of {message.count} losses of step {message.step} from position "
            f"{message.offset} was refused: {message.message}",
            code=code_name(message.code),
        )
        with self._lock:
            if not self.ledger.refuse(message.step, message.offset, message.count, error):
                self._refusals.append(error)
            self._wake_all()

    def _receive_weights(self, message: trainer_pb2.Weights) -> None:
        try:
            weights = wire.unpack(message.weights, np.float32, name="weights").copy()
        except ValueError as error:
            raise Internal(f"{self.options.name}: weights of step {message.step}: {error}") from error
        with self._lock:
            self.ledger.weigh(message.step, message.offset, weights)
            self._answers.notify_all()
            # The report is owed no longer where it was acknowledged before, which makes room for another one.
            self._acknowledgements.notify_all()

    # -- under the lock --------------------------------------------------------------------------------------------

    def _send_credit(self, batches: int) -> None:
        if batches and self._connected:
            self._send(trainer_pb2.TrainerMessage(credit=trainer_pb2.Credit(batches=batches)))

    def _wait(self, changed: threading.Condition, deadline: float) -> bool:
        """Waits for a change. False when the deadline has passed."""
        left = deadline - time.monotonic()
        return left > 0 and (changed.wait(left) or time.monotonic() < deadline)

    def _wake_all(self) -> None:
        for changed in (self._joining, self._batches, self._answers, self._acknowledgements):
            changed.notify_all()

    def _check_open(self) -> None:
        """Raises what ended the session, and each refusal once."""
        if self._error is not None:
            raise copy.copy(self._error)
        if self._over:
            raise SessionClosed(f"{self.options.name}: the session was left or closed")
        if self._refusals:
            raise self._refusals.popleft()

    def _check_staleness(self) -> None:
        """Raises where the next draw needs a report that only the caller can make."""
        assert self.joined is not None
        staleness = self.staleness
        # Where another process makes the reports, only it can be waiting for itself.
        if not self.joined.reads_reports or staleness == "any" or not self.options.reports:
            return
        needed = self.ledger.needed_step(staleness)
        if needed is None or not self.ledger.unreported(needed):
            return
        raise StalenessError(
            f"{self.options.name}: the draw of step {self.ledger.next_step} needs the report of step {needed} "
            f"(staleness {staleness}), which this rank was handed and has not reported. "
            f"{self.ledger.unreported_steps} batches are handed out and unreported, where staleness {staleness} allows "
            f"{staleness} ahead of the one in training. Three ways out: {_ways_out(staleness)}. Where another process "
            "reports this slice, join with reports=False"
        )

    def _check_order(self, step: int) -> None:
        """Raises where the weights of a step wait for an earlier report that only the caller can make."""
        assert self.rules is not None
        weighing = self.rules.at(step)
        if weighing.source != "in order" or not self.options.reports:
            return
        before = self.ledger.oldest_unreported()
        if before is not None and before < step:
            raise StalenessError(
                f"{self.options.name}: the weights of step {step} wait for step {before}, which this rank was handed "
                f"and has not reported: {weighing.method!r} weighs the steps in their order, so report them in it"
            )

    def _of_steps_before(self, step: int) -> str:
        assert self.rules is not None
        weighing = self.rules.at(step)
        if weighing.source != "in order":
            return ""
        return f", of every step up to it ({weighing.method!r} weighs the steps in their order)"

    def _why_no_batch(self, limit: float) -> str:
        text = f"{self.options.name}: no batch of step {self.ledger.next_step} within {limit:g} s"
        connection = self._about_connection()
        needed = None if self.staleness == "any" else self.ledger.needed_step(self.staleness)
        if connection or needed is None:
            return text + (connection or "; the server sent nothing")
        if not self.options.reports:
            own = "is made by another process"
        elif self.ledger.is_open(needed):
            own = "has not been made"
        else:
            own = "is acknowledged" if self.ledger.is_acknowledged(needed) else "is not acknowledged yet"
        return (
            f"{text}. Where the draw reads reports (staleness {self.staleness}) it needs those of step {needed} from "
            f"all {self.options.world_size} ranks; this rank's {own}"
        )

    def _unacknowledged(self) -> str:
        return f"{self.ledger.unacknowledged} reports ({self.ledger.owed_bytes} bytes) are not acknowledged"

    def _about_connection(self) -> str:
        """What is wrong with the connection, nothing where it stands."""
        if self._trouble is None:
            return ""
        since, error = self._trouble
        return (
            f"; no connection for {time.monotonic() - since:.0f} s, it is tried again (last error: {error})"
        )


def _ways_out(staleness: int) -> str:
    """What a trainer that takes more than `staleness` batches ahead can do."""
    ahead = f"prefetch_factor * num_workers at most {staleness}" if staleness else "num_workers=0"
    return (
        f"(1) take fewer batches ahead, with a DataLoader: {ahead}; (2) make the run with a staleness of at least what "
        'is taken ahead; (3) make it with staleness="any", which gives up that the same run again serves the same '
        "batches"
    )


def _seat_taken(error: SteelyardError, waited: float) -> AlreadyExists:
    return AlreadyExists(
        f"{error}. Waited {waited:.0f} s for that session to end: where its process is gone, the rank is free within "
        "15 s; where it lives, two processes of this attempt claim the same rank"
    )
