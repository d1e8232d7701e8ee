"""Unary calls to one server: a channel made at the first of them, deadlines, and errors that explain."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from steelyard import forking
from steelyard.abilities import INSTANCE, Abilities, of_schema, told
from steelyard.calling import Metadata, metadata
from steelyard.channel import SharedChannels, errors_of, why_not
from steelyard.credentials import Credentials
from steelyard.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    HandshakeFailed,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    SteelyardError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from steelyard.handshake import UNSENT, check_token
from steelyard.v1 import (
    admin_pb2_grpc,
    datasets_pb2_grpc,
    events_pb2_grpc,
    runs_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
)

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

_HANDSHAKES = 2
"""Failed ones in a row, where there never was any connection, after which a call gives up: one may meet files that are
just being replaced."""
_ONCE_SECONDS = 45.0
"""For which a call is asked for again that counts: less than the server remembers (service/once.py)."""
_ENDED = (
    "max connection age",
    "Stream removed",
    "Broken pipe",
    "Connection reset",
    "Socket closed",
    "GOAWAY",
)
"""In gRPC's words for a connection that ended under a call, of which the server then says nothing. One that ends of its
age is told so, unless it is just being written to."""
_LET_GO = "CANCELLED"
"""Not by a client, which takes nothing back: gRPC's server says it of calls that wait where too many do (when strangers
send thousands that they take back at once), and of those that wait or are under way when it ends."""
_ANEW = "was started anew"
_ASK = server_pb2.GetServerRequest()
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 2.0
# Our own, so that a program that seeds or watches the module's generator does not meet ours.
_JITTER = random.Random()  # noqa: S311 -- jitter keeps no secret


@dataclass(frozen=True, slots=True)
class Stubs:
    """The services of one server, over one channel."""

    channel: grpc.Channel
    datasets: datasets_pb2_grpc.DatasetServiceStub
    runs: runs_pb2_grpc.RunServiceStub
    events: events_pb2_grpc.EventServiceStub
    admin: admin_pb2_grpc.AdminServiceStub
    server: server_pb2_grpc.ServerServiceStub


class Transport:
    """The stubs of one server, opened when they are first asked for, and anew where the certificate files have changed.
    Safe to use from many threads."""

    def __init__(self, address: str, timeout: float, credentials: Credentials | None = None) -> None:
        self.address = address
        self.timeout = timeout
        self.credentials = credentials
        self.secure = credentials is not None and credentials.secure
        self._channels = SharedChannels()
        self._lock = threading.Lock()
        self._closed = False
        self._stubs: Stubs | None = None  # whose channel is held, so that it outlives each call
        self._abilities: Abilities | None = None
        self._proven = False  # an answer has come

    def call(
        self,
        method: Callable[[Stubs], grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]],
        request: RequestT,
        purpose: str,
        *,
        once: bool = False,
    ) -> ResponseT:
        """Makes one call. `purpose` says in words what was asked for; an error repeats it.

        What never reached the server, or was refused before the server did anything, is asked for again until the
        client's timeout, and so is what the server had not answered when the connection ended, or when more calls
        waited than it takes. `once`: it counts when it is repeated. Where the connection ends before the answer comes,
        it is asked for again all the same, of a server that does it once; Unavailable of one that is too old for that,
        or that was started anew meanwhile, or that answers so itself: it may have been done or not.
        """
        if not once:
            return self._until(method, request, purpose, metadata(), repeatable=True)
        abilities = self.abilities(purpose)
        if "once" not in abilities.names:
            return self._until(method, request, purpose, metadata())
        return self._once(method, request, purpose, abilities)

    def abilities(self, purpose: str) -> Abilities:
        """What the server can do; asked for at the first use. Errors are those of call."""
        if self._abilities is None:
            try:
                answer = self._until(lambda to: to.server.GetServer, _ASK, purpose, metadata())
                self._abilities = told(answer)
            except Unimplemented:
                with self.stubs(purpose) as stubs:
                    self._abilities = of_schema(stubs.channel, self.timeout)
            except PermissionDenied:
                return Abilities(frozenset(), known=False)
        return self._abilities

    def require(self, ability: str, what: str, purpose: str) -> None:
        """FailedPrecondition where the server is known not to have it: before anything is done."""
        if self.abilities(purpose).lacks(ability):
            self._abilities = None  # it may have been upgraded since it was asked
        if self.abilities(purpose).lacks(ability):
            raise FailedPrecondition(
                f"{purpose}: the server at {self.address} knows no {what}; it is of before there were any. Nothing was "
                f"done. Upgrade it, or go on without `{ability}`"
            )

    def _once(
        self,
        method: Callable[[Stubs], grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]],
        request: RequestT,
        purpose: str,
        abilities: Abilities,
    ) -> ResponseT:
        """As call, of a server that does once what it is asked for twice by the same metadata."""
        own = metadata()
        limit = time.monotonic() + min(self.timeout, _ONCE_SECONDS)
        broke: Unavailable | None = None
        pauses = _pauses()
        while True:
            try:
                shown = (*own, (INSTANCE, str(abilities.instance)))
                return self._until(method, request, purpose, shown, by=None if broke is None else limit)
            except (DeadlineExceeded, ResourceExhausted, Unauthenticated, PermissionDenied) as error:
                # None of them is what came of the first time: they are said before it is looked for.
                if broke is None or (isinstance(error, ResourceExhausted) and error.retry_after is None):
                    raise
                raise type(error)(f"{broke}; it may have been done or not; asked again: {error}") from None
            except Unavailable as error:
                pause = max(next(pauses), error.retry_after or 0.0)
                # What the server answered it would answer again, since it does this once; unless it did nothing.
                over = isinstance(error, HandshakeFailed) or (error.answered and error.retry_after is None)
                if over or time.monotonic() + pause > limit:
                    raise
                if error.retry_after is None:
                    broke = error
            except Aborted as error:
                if _ANEW not in str(error):
                    raise
                if broke is not None:
                    raise Unavailable(f"{broke}; asked again: {error}") from None
                # It was started anew before this call was ever made.
                self._abilities, pause = None, 0.0
                abilities = self.abilities(purpose)
            time.sleep(pause)

    def _until(
        self,
        method: Callable[[Stubs], grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]],
        request: RequestT,
        purpose: str,
        own: Metadata,
        *,
        repeatable: bool = False,
        by: float | None = None,
    ) -> ResponseT:
        """One call, made until the server has taken it; until it is answered, where it is repeatable. `by`: when it is
        sent at the latest, of one that was sent before: a server that has forgotten that would do it again."""
        deadline = time.monotonic() + self.timeout
        last = deadline if by is None else min(deadline, by)
        pauses, handshakes = _pauses(), 0
        refused: ResourceExhausted | None = None
        while True:
            self._await_token(purpose, last)
            try:
                left = max(deadline - time.monotonic(), 0.001)
                return self._try(method, request, purpose, own, left, wait=by is None)
            except HandshakeFailed:
                handshakes += 1
                pause = next(pauses)
                # That the server speaks TLS and this client does not is certain at the first one.
                hopeless = not self._proven and (handshakes >= _HANDSHAKES or not self.secure)
                if hopeless or time.monotonic() + pause > last:
                    raise
            except Unavailable as error:
                unanswered = repeatable and (
                    error.code == _LET_GO or any(words in str(error) for words in _ENDED)
                )
                unsent = any(words in str(error) for words in UNSENT)
                if not unanswered and not unsent:
                    raise
                handshakes, pause = 0, next(pauses)
                if time.monotonic() + pause > last:
                    kind = "answer of" if unanswered else "connection with"
                    raise DeadlineExceeded(
                        f"{purpose}: no {kind} {self.address} within {self.timeout:g} s: {error}"
                    ) from None
            except DeadlineExceeded as error:
                raise (error if refused is None else refused) from None
            except ResourceExhausted as error:
                if error.retry_after is None:
                    raise
                refused = error
                pause = max(error.retry_after, next(pauses))
                if time.monotonic() + pause > last:
                    raise
            time.sleep(pause)

    def _await_token(self, purpose: str, deadline: float) -> None:
        """InvalidArgument where there is none to show. Where the server has answered before, its file may be in the
        middle of being replaced, and is waited for."""
        pauses = _pauses()
        while True:
            try:
                return check_token(self.credentials)
            except InvalidArgument as error:
                pause = next(pauses)
                if not self._proven or time.monotonic() + pause > deadline:
                    raise InvalidArgument(f"{purpose}: {error}") from None
            time.sleep(pause)

    def close(self) -> None:
        # A forked child closes nothing: the channel is its parent's, and the lock may be held for ever.
        if not forking.allowed():
            return
        with self._lock:
            self._closed = True
            self._stubs = None
        self._channels.close()

    @property
    def proven(self) -> bool:
        """Whether the server is known to be spoken to as it should, by TLS that works or by none: it has answered."""
        return self._proven

    @contextmanager
    def stubs(self, purpose: str) -> Iterator[Stubs]:
        """Stubs that work until the block is left, whatever becomes of the certificate files meanwhile."""
        stubs = self._open(purpose)
        try:
            yield stubs
        finally:
            # Not by a forked child, which may let go of its parent's.
            if forking.allowed():
                self._channels.give_back(stubs.channel, broken=False)

    def _try(
        self,
        method: Callable[[Stubs], grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]],
        request: RequestT,
        purpose: str,
        own: Metadata,
        timeout: float,
        *,
        wait: bool,
    ) -> ResponseT:
        with self.stubs(purpose) as stubs:
            # A server that is being started, or started again, is waited for within the deadline. Not by gRPC where
            # there is TLS, or may be: it would wait for a handshake that can never succeed, too, such as one by
            # certificates that have been replaced since, and say nothing of it.
            ready = wait and self._proven and not self.secure
            try:
                with errors_of(self.address, purpose, self.timeout, self.credentials):
                    answer = method(stubs)(request, timeout=timeout, metadata=own, wait_for_ready=ready)
            except DeadlineExceeded as error:
                raise self._with_reason(error, stubs.channel) from None
            except Unavailable:
                raise
            except SteelyardError as error:
                self._proven = True
                if error.code == _LET_GO and not self._closed:
                    raise Unavailable(f"{error}; it let go of the call", code=_LET_GO) from None
                raise
            self._proven = True
            return answer

    def _with_reason(self, error: DeadlineExceeded, channel: grpc.Channel) -> DeadlineExceeded:
        reason = why_not(channel, self.address, self.credentials)
        return error if reason is None else DeadlineExceeded(f"{error}: {reason}")

    def _open(self, purpose: str) -> Stubs:
        # Before the lock: a forked child may have inherited it held.
        forking.claim(f"a call to {self.address}")
        with self._lock:
            if self._closed:
                raise Unavailable(f"the client of {self.address} was closed")
            channel = self._channels.take(self.address, f"a call to {self.address}", self.credentials)
            if self._stubs is None or self._stubs.channel is not channel:
                before, self._stubs = self._stubs, _stubs_of(channel)
                self._channels.hold(channel)
                if before is not None:
                    self._channels.give_back(before.channel, broken=True)
            return self._stubs


def _stubs_of(channel: grpc.Channel) -> Stubs:
    return Stubs(
        channel,
        datasets_pb2_grpc.DatasetServiceStub(channel),
        runs_pb2_grpc.RunServiceStub(channel),
        events_pb2_grpc.EventServiceStub(channel),
        admin_pb2_grpc.AdminServiceStub(channel),
        server_pb2_grpc.ServerServiceStub(channel),
    )


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE
    while True:
        yield pause * _JITTER.uniform(0.5, 1.0)
        pause = min(2 * pause, _LAST_PAUSE)
