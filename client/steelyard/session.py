"""A trainer's place in a run: batches out, losses in, weights back."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import uuid
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from steelyard.arguments import seconds, whole
from steelyard.batch import Batch
from steelyard.errors import ForkedSession, InvalidArgument
from steelyard.info import Staleness
from steelyard.ledger import Answer, Owed
from steelyard.membership import Membership
from steelyard.messages import Outgoing, losses_that_fit, report_parts
from steelyard.options import SessionOptions
from steelyard.stream import Stream
from steelyard.v1 import trainer_pb2
from steelyard.weigh import Context, Rule
from steelyard.weighing import PendingWeights, Rules, Weighing

_LOG = logging.getLogger("steelyard")

# Seconds that leave() gives the server to answer, and close() the stream's thread to end, which is a daemon, so that
# nothing hangs on it.
_CLOSE_SECONDS = 5.0


class Session:
    """One rank's stream of batches and reports. Made by Run.join; use it as a context manager.

    Batches come in step order and are fetched ahead of their use, `prefetch` at most. A report is sent at once and
    kept until the server has made it durable. When the connection breaks, the session makes a new one by itself, goes
    on after the last batch that it received, and sends again what was not acknowledged. The refusal of a report is
    raised once, by the next call on the session, which goes on. When the session has ended for good (a newer attempt,
    a rewind, a deleted run, no server for `reconnect_timeout`), every call raises the reason.

    Safe to use from many threads. Belongs to the process that joined: in a forked child every call raises
    ForkedSession, and it does not pickle (a Run does). Runs until it is left or closed, also where nobody holds it.
    """

    def __init__(self, options: SessionOptions) -> None:
        """Joins. Waits until the run has answered, `options.timeout` seconds at most."""
        self._options = options.checked()
        self._pid = os.getpid()
        self._member = Membership(self._options, _session_id(), self._send)
        self._stream = Stream(
            self._options.address,
            self._member,
            purpose=f"joining {self._options.name}",
            credentials=self._options.credentials,
            reconnect_timeout=self._options.reconnect_timeout,
        )
        _open_sessions.add(self)
        self._stream.start()
        try:
            self._member.await_join(self._options.timeout)
        except BaseException:
            self.close()
            raise

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def run_name(self) -> str:
        return self._options.run

    @property
    def rank(self) -> int:
        return self._options.rank

    @property
    def world_size(self) -> int:
        return self._options.world_size

    @property
    def reports(self) -> bool:
        """Whether this process makes the reports of its slice."""
        return bool(self._options.reports)

    @property
    def attempt(self) -> str:
        """The token that this session joined with."""
        return self._joined.attempt

    @property
    def start_step(self) -> int:
        """The first step that this session was served."""
        return self._member.ledger.start_step

    @property
    def step(self) -> int:
        """The next step to hand out."""
        return self._member.ledger.next_step

    @property
    def batch_size(self) -> int:
        """Positions of a global batch."""
        return self._joined.spec.batch_size

    @property
    def dataset_size(self) -> int:
        """Examples of the dataset when the session joined."""
        return self._joined.dataset_size

    @property
    def staleness(self) -> Staleness:
        """Steps of reports that a draw lacks, or "any"."""
        return self._member.staleness

    @property
    def reads_reports(self) -> bool:
        """Whether a draw waits for reports, as of the join."""
        return self._joined.reads_reports

    @property
    def prefetch(self) -> int:
        """Batches held ahead at most."""
        return self._member.ledger.prefetch

    @property
    def rule(self) -> Rule:
        """The weigh rule of the batch handed out last, of the first one before that. InvalidArgument as rule_at."""
        return self.rule_at(max(self.step - 1, self.start_step))

    def rule_at(self, step: int) -> Rule:
        """The weigh rule in force at a step that was received. InvalidArgument: one that is known to the server alone,
        which makes its weights."""
        return self._rules.rule(step)

    def weighing_at(self, step: int) -> Weighing:
        """Where the weights of a step that was received come from."""
        return self._rules.at(step)

    def where_at(self, step: int, *, gathered: bool = False) -> Literal["client", "server"]:
        """Where the weights of a step are made, if its rule reads losses.

        `gathered` says that the trainer brings the losses of all ranks together, as one process does anyway.
        """
        return self._rules.where(step, 1 if gathered else self.world_size)

    @property
    def waited_seconds(self) -> float:
        """Seconds that next() has waited for batches, in all."""
        return self._member.waited

    @property
    def last_wait_seconds(self) -> float:
        """Seconds that the last next() waited; about 0 where its batch was there."""
        return self._member.last_wait

    @property
    def late_reports(self) -> int:
        """Reports that came after their step was closed."""
        return self._member.ledger.late_reports

    @property
    def unacknowledged(self) -> int:
        """Reports that are not durable yet."""
        self._check_process()
        return self._member.unacknowledged()

    def __repr__(self) -> str:
        return f"<steelyard.Session of {self._options.name}, next step {self.step}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Session belongs to the process that joined and does not pickle; pickle the Run, join there"
        )

    # -- batches ---------------------------------------------------------------------------------------------------

    def next(self, timeout: float | None = None) -> Batch:
        """The next batch: this rank's slice of it.

        Waits for it, `timeout` seconds at most (the session's by default). StalenessError, at once: its draw needs the
        report of a batch that this session was handed and has not reported. DeadlineExceeded says what was waited for.
        Warns (MissingSignalWarning), once a name, of signals that the policy reads and that reports do not have.
        ReportRefused: an earlier report was refused; the batch is still there for the next call.
        """
        limit = self._limit(timeout)
        self._member.warn()
        return self._member.next_batch(limit)

    def __iter__(self) -> Session:
        return self

    def __next__(self) -> Batch:
        """The next batch; the iteration ends when the session was left or closed here."""
        self._check_process()
        if self._member.left:
            raise StopIteration
        return self.next()

    # -- reports ---------------------------------------------------------------------------------------------------

    def report(
        self,
        batch: Batch,
        losses: Any,
        *,
        signals: Mapping[str, Any] | None = None,
        offset: int | None = None,
        timeout: float | None = None,
    ) -> npt.NDArray[np.float32]:
        """Reports the losses of this rank's slice, one for each id, and returns their weights: float32[n].

        The mean over the global batch of weight times loss is the objective. `losses` are numbers in one dimension: an
        array, a list, a tensor on any device. `signals` are further named numbers of the same positions. With `offset`
        they are those of a micro-batch that begins there in the slice; without, those of the whole slice.

        Where the server weighs, this waits until all ranks have reported the step, `timeout` seconds at most (the
        session's by default); report_async does not. It also waits while too many reports are unacknowledged. Under a
        rule that remembers the steps before, it waits for those too; StalenessError, at once: one of them was handed
        out here and is not reported.

        MismatchedLosses: another count than the slice's. ReportRefused: this report, or an earlier one, was refused.
        InvalidArgument: not a batch of this session, or a rule that this call cannot apply; the message says what can.
        """
        limit = self._limit(timeout)
        values = self._checked(batch, losses, offset)
        first = offset or 0
        if not self._reads_losses(batch):
            weights = self._drawn_weights(batch, values, first)
            self._submit(batch, values, signals, first, None, limit)
            return weights
        if len(values) < len(batch) and not self._member.would_complete(
            batch.step, len(batch), first, len(values)
        ):
            raise InvalidArgument(
                f"step {batch.step}: its weights depend on the losses of the whole batch, and these {len(values)} are "
                f"not the last of this slice's {len(batch)}, so waiting for them here would never end. Report the "
                "whole slice, or use report_async for each part and ask for the results after the last"
            )
        pending = self._report_weighed(batch, values, signals, first, limit)
        return self._member.await_answer(pending, limit)

    def report_async(
        self,
        batch: Batch,
        losses: Any,
        *,
        signals: Mapping[str, Any] | None = None,
        offset: int | None = None,
        timeout: float | None = None,
    ) -> PendingWeights:
        """As report, without waiting for the other ranks: the weights are asked for with result()."""
        limit = self._limit(timeout)
        values = self._checked(batch, losses, offset)
        first = offset or 0
        if self._reads_losses(batch):
            answer = self._report_weighed(batch, values, signals, first, limit)
        else:
            weights = self._drawn_weights(batch, values, first)
            self._submit(batch, values, signals, first, None, limit)
            answer = Answer(batch.step, len(weights), weights)
        return PendingWeights(answer, self._result)

    def report_raw(
        self,
        batch: Batch,
        losses: Any,
        *,
        signals: Mapping[str, Any] | None = None,
        offset: int | None = None,
        want_weights: bool = False,
        timeout: float | None = None,
    ) -> PendingWeights:
        """Reports, and weighs nothing here. For trainers that weigh by themselves.

        With `want_weights` the server is asked for the weights, whatever the policy says of where; without, the result
        is an empty array. Waits only while too many reports are unacknowledged.
        """
        limit = self._limit(timeout)
        values = self._checked(batch, losses, offset)
        answer = Answer(batch.step, len(values))
        if not (want_weights and len(values)):
            answer.weights = np.zeros(0, np.float32)
        self._submit(batch, values, signals, offset or 0, answer if want_weights else None, limit)
        return PendingWeights(answer, self._result)

    def announce(self, batch: Batch) -> None:
        """Says that another thread is about to report this batch: next() waits for that instead of raising."""
        self._check_process()
        self._member.announce(batch.step)

    def flush(self, timeout: float | None = None) -> None:
        """Waits until every report is acknowledged, `timeout` seconds at most (the session's by default)."""
        self._member.await_acknowledgements(self._limit(timeout))
        self._member.warn()

    # -- the end ---------------------------------------------------------------------------------------------------

    def leave(self, timeout: float | None = None) -> None:
        """Ends the session in good order: all reports acknowledged, the rank free. Errors are those of flush().

        Nothing is lost any more once that is so: a server that then does not answer is waited for no longer than 5 s.
        """
        limit = self._limit(timeout)
        if self._member.left:
            return
        try:
            self.flush(limit)
            self._stream.leave()
            if not self._stream.join(_CLOSE_SECONDS):
                _LOG.warning(
                    "%s: all reports are durable, and the server has not confirmed the end of the session within %g s; "
                    "it is ended here",
                    self._options.name,
                    _CLOSE_SECONDS,
                )
        finally:
            self.close()

    def close(self) -> None:
        """Ends the session at once. Reports that were not acknowledged may or may not have arrived."""
        self._check_process()
        self._member.ended(None)
        self._stream.stop()
        self._stream.join(_CLOSE_SECONDS)
        _open_sessions.discard(self)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:
            return  # a forked child leaves the block, not the session, which is its parent's
        if kind is None:
            self.leave()
        else:
            self.close()

    # -- inside ----------------------------------------------------------------------------------------------------

    @property
    def _joined(self) -> trainer_pb2.Joined:
        assert self._member.joined is not None
        return self._member.joined

    @property
    def _rules(self) -> Rules:
        assert self._member.rules is not None
        return self._member.rules

    def _send(self, request: Outgoing) -> None:
        self._stream.send(request)

    def _result(self, answer: Answer, timeout: float | None) -> npt.NDArray[np.float32]:
        return self._member.await_answer(answer, self._limit(timeout))

    def _limit(self, timeout: float | None) -> float:
        self._check_process()
        return self._options.timeout if timeout is None else seconds("timeout", timeout)

    def _checked(self, batch: Batch, losses: Any, offset: int | None) -> npt.NDArray[np.float32]:
        """The losses as float32. Raises where they do not fit the batch, or the batch not the session."""
        if not isinstance(batch, Batch):
            raise InvalidArgument(f"batch: expected a Batch of this session, got {type(batch).__name__}")
        if batch.rank != self._options.rank or batch.world_size != self._options.world_size:
            raise InvalidArgument(
                f"{self._options.name}: expected a batch of this rank, got one of rank {batch.rank} of "
                f"{batch.world_size}"
            )
        first = None if offset is None else whole("offset", offset, below=2**32)
        return losses_that_fit(batch, losses, first)

    def _reads_losses(self, batch: Batch) -> bool:
        """Whether the weights of a batch depend on its losses."""
        return self._rules.read_losses(batch.step) and len(batch) > 0

    def _drawn_weights(
        self, batch: Batch, losses: npt.NDArray[np.float32], first: int
    ) -> npt.NDArray[np.float32]:
        """The weights where they do not depend on losses."""
        # The server has weighed by the probability already, and sends nothing where all weights are 1.
        weights = batch.weight if len(losses) == len(batch) else batch.weight[first : first + len(losses)]
        return weights.copy()

    def _report_weighed(
        self,
        batch: Batch,
        losses: npt.NDArray[np.float32],
        signals: Mapping[str, Any] | None,
        first: int,
        limit: float,
    ) -> Answer:
        """Reports under a rule that reads losses. The answer has the weights, or waits for the server's."""
        answer = Answer(batch.step, len(losses))
        here = self._weighs_here(batch, len(losses))
        if here:
            answer.weights = self._rules.rule(batch.step).weights(losses, Context(step=batch.step))
        elif not len(losses):
            answer.weights = np.zeros(0, np.float32)
        self._submit(batch, losses, signals, first, None if here else answer, limit)
        return answer

    def _submit(
        self,
        batch: Batch,
        losses: npt.NDArray[np.float32],
        signals: Mapping[str, Any] | None,
        first: int,
        answer: Answer | None,
        limit: float,
    ) -> None:
        """Sends a report, whose weights `answer` asks for. An empty one is not owed."""
        if not len(losses):
            return
        request = report_parts(batch, losses, signals=signals, offset=first, want_weights=answer is not None)
        owed = Owed(
            request,
            step=batch.step,
            offset=request.offset,
            count=len(losses),
            size=request.size,
            slice=(batch.offset, len(batch)),
            answer=answer,
        )
        self._member.submit(owed, limit)

    def _weighs_here(self, batch: Batch, count: int) -> bool:
        """Whether this process makes the weights of a rule that reads losses. InvalidArgument: it should and cannot."""
        if self.where_at(batch.step) == "server":
            return False
        if self.world_size == 1 and count == len(batch):
            return True
        if self._rules.is_free(batch.step):
            return False  # a micro-batch: the server puts the parts together
        raise InvalidArgument(
            f'step {batch.step}: the policy weighs on the client (weigh.where = "client"), which needs the losses of '
            f"the whole batch in one place; here are {count} of {batch.batch_size}. steelyard.torch gathers them over "
            'the process group; otherwise set weigh.where to "server" or "auto"'
        )

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedSession(
                f"{self._options.name}: the session belongs to process {self._pid} that joined, and this is process "
                f"{os.getpid()}. A loader's workers need only the ids of a batch; whoever wants a session of their own "
                "joins in their own process (by spawn or forkserver: the Run pickles)"
            )


def _session_id() -> str:
    """Random; a message that names it leads to the process."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}:{uuid.uuid4().hex[:16]}"


_open_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """An interpreter that exits with sessions open does not wait for their streams."""
    for session in list(_open_sessions):
        session._stream.stop()


if hasattr(os, "register_at_fork"):
    # A child's sessions are its parent's: it stops none of them.
    os.register_at_fork(after_in_child=lambda: _open_sessions.clear())
