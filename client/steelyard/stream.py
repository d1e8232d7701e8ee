"""The connection of one session: one thread that owns the stream and makes it anew when it breaks.

The thread opens a channel and a stream, sends the join, and hands every answer to its owner. When the stream breaks
it waits a little (0.05 s at first, 2 s at most, with jitter) and does it again; when it ends for good it says so and
is done.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import grpc

from steelyard import forking
from steelyard.calling import metadata, trace
from steelyard.channel import SharedChannels, told_in_words
from steelyard.credentials import Credentials
from steelyard.errors import (
    HandshakeFailed,
    Internal,
    InvalidArgument,
    SteelyardError,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)
from steelyard.handshake import check_token
from steelyard.messages import Outgoing, ReportParts, request_of
from steelyard.v1 import trainer_pb2, trainer_pb2_grpc

_LOG = logging.getLogger("steelyard")

_FIRST_DELAY = 0.05
_LAST_DELAY = 2.0

# A connection that broke. CANCELLED is what a server says that stops without waiting.
_BROKEN = frozenset({"UNAVAILABLE", "CANCELLED"})
# A reset connection or a bug of the server: tried again a few times, as long as it gets nowhere.
_DOUBTFUL = frozenset({"INTERNAL", "UNKNOWN"})
_DOUBTFUL_TRIES = 3
# Handshakes that fail in a row before there was any connection: then it is no moment between two certificates.
_HANDSHAKES = 2
# A trainer that was let in before may meet the moment before its token or its certificate files are renewed.
_RENEWED = (Unauthenticated, InvalidArgument)
_RENEWED_SECONDS = 60.0
# What has gathered is sent together up to this size, well below any limit of a server; a larger message goes alone.
_REQUEST_BYTES = 1 << 20
# Our own, so that a program that seeds or watches the module's generator does not meet ours.
_JITTER = random.Random()  # noqa: S311 -- jitter keeps no secret

# Below what a server lets onto one connection.
_CHANNELS = SharedChannels(most=64)


class Owner(Protocol):
    """Whose stream it is. All calls come from the stream's thread, one at a time."""

    def joining(self) -> trainer_pb2.TrainerMessage:
        """A connection is being made: the join that it begins with."""

    def received(self, response: trainer_pb2.RunMessage) -> None:
        """An answer came. A SteelyardError that this raises ends the stream for good."""

    def broke(self, error: SteelyardError) -> None:
        """The connection broke and will be made anew."""

    def may_pass(self, error: SteelyardError) -> bool:
        """Whether what the server refused is worth asking for again, though the connection stands."""

    def ended(self, error: SteelyardError | None) -> None:
        """The stream is over: left in good order (None), or for good with this error. Nothing follows."""


class Stream:
    """Starts with start(), ends by itself or with stop(). send() and stop() may be called from any thread."""

    def __init__(
        self,
        address: str,
        owner: Owner,
        *,
        purpose: str,
        reconnect_timeout: float,
        credentials: Credentials | None = None,
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._owner = owner
        self._purpose = purpose
        self._reconnect_timeout = reconnect_timeout
        self._trace = trace()  # of who joins; the thread is nobody's
        self._stop = threading.Event()
        self._leaving = False
        self._lock = threading.Lock()
        self._outbox: queue.SimpleQueue[Outgoing | None] = queue.SimpleQueue()
        self._call: grpc.Call | None = None
        self._answered = False  # whether the present connection brought anything
        self._progress = False  # whether it brought more than the answer to the join
        self._served = False  # whether any connection brought an answer
        self._thread = threading.Thread(target=self._main, name=f"steelyard {purpose}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, request: Outgoing) -> None:
        """Puts a message on the present connection; never waits. What a broken connection held is lost."""
        self._outbox.put(request)

    def leave(self) -> None:
        """Sends Leave; the stream then ends with None, also where it breaks before the server has answered."""
        self._leaving = True
        with self._lock:
            if self._call is not None:
                self._outbox.put(trainer_pb2.TrainerMessage(leave=trainer_pb2.Leave()))
                return
        # Between two connections there is nobody to take leave of.
        self._stop.set()

    def stop(self) -> None:
        """Ends the stream at once; what is on its way is lost. Does not wait for the thread."""
        self._stop.set()
        with self._lock:
            call = self._call
        if call is not None:
            call.cancel()

    def join(self, timeout: float) -> bool:
        """Waits for the thread. Whether it has ended."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._owner.ended(self._serve())
        except SteelyardError as error:
            self._owner.ended(error)
        except Exception as error:  # a bug of ours must end the session, not leave its owner waiting
            failure = Internal(f"{self._purpose}: the client failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._owner.ended(failure)

    def _serve(self) -> SteelyardError | None:
        """Connects until the stream is over, and returns how it ended. Raises what the owner raised."""
        delay, doubtful, strange = _FIRST_DELAY, 0, 0
        down_since, told = time.monotonic(), False
        while True:
            error = self._connect_once()
            if self._stop.is_set() or self._leaving:
                return None
            if self._answered:
                down_since, told = time.monotonic(), False
            if self._progress:
                delay, doubtful = _FIRST_DELAY, 0
            down = time.monotonic() - down_since
            doubtful += error.code in _DOUBTFUL
            strange = strange + 1 if isinstance(error, HandshakeFailed) else 0
            again = (
                (error.code in _BROKEN and (self._served or strange < _HANDSHAKES))
                or (error.code in _DOUBTFUL and doubtful <= _DOUBTFUL_TRIES)
                or error.retry_after is not None
                or (self._served and isinstance(error, _RENEWED) and down < _RENEWED_SECONDS)
            )
            refused = self._served and isinstance(error, _RENEWED)
            if not again and not self._owner.may_pass(error):
                return self._given_up(error, down) if refused else error
            if again and down > self._reconnect_timeout:
                return Unavailable(
                    f"{self._purpose}: gave up after {down:.0f} s of trying to reach it; last error: {error}"
                )
            self._owner.broke(error)
            if refused and not told:
                told = True
                self._warn(error, min(_RENEWED_SECONDS, self._reconnect_timeout) - down)
            if self._stop.wait(max(delay * _JITTER.uniform(0.5, 1.0), error.retry_after or 0.0)):
                return None
            delay = min(2 * delay, _LAST_DELAY)

    def _warn(self, error: SteelyardError, left: float) -> None:
        text = "%s: %s. Trying again for %.0f s at most, in case that %s is renewed"
        _LOG.warning(text, self._purpose, error, left, self._shown())

    def _given_up(self, error: SteelyardError, down: float) -> SteelyardError:
        return type(error)(
            f"{self._purpose}: {error}. Tried again for {down:.0f} s, in case that {self._shown()} was renewed",
            code=error.code,
        )

    def _shown(self) -> str:
        """By what the server knows this client."""
        mine = self._credentials
        if mine is None or not (mine.has_token or mine.cert):
            return "what the server knows of this client"
        if mine.token is not None:
            return "the token that was given"
        return f"token_file {mine.token_file}" if mine.token_file else f"cert {mine.cert}"

    def _connect_once(self) -> SteelyardError:
        """Serves one connection until it ends, and returns with what. Raises what the owner raised."""
        self._answered = self._progress = False
        outbox: queue.SimpleQueue[Outgoing | None] = queue.SimpleQueue()
        outbox.put(self._owner.joining())
        try:
            check_token(self._credentials)
            channel = _CHANNELS.take(self._address, self._purpose, self._credentials)
        except InvalidArgument as error:  # credentials: files that cannot be read, or are no good
            return error
        call: grpc.Call | None = None
        broken = False
        try:
            call = trainer_pb2_grpc.TrainerServiceStub(channel).Train(
                _drain(outbox), metadata=metadata(self._trace)
            )
            forking.keep(call)
            with self._lock:
                self._call = call
                self._outbox = outbox
            if self._stop.is_set():
                call.cancel()
            for response in call:
                self._answered = self._served = True
                for message in response.messages:
                    self._progress = self._progress or message.WhichOneof("message") != "joined"
                    self._owner.received(message)
            return Unavailable("the server ended the stream")
        except grpc.RpcError as error:
            failure = told_in_words(from_rpc_error(error), self._address, self._credentials)
            broken = failure.code in _BROKEN | _DOUBTFUL and not self._stop.is_set()
            return failure
        finally:
            outbox.put(None)
            with self._lock:
                self._call = None
            if call is not None:
                call.cancel()  # where its owner raised; others may use the channel
            _CHANNELS.give_back(channel, broken=broken)


def _drain(
    outbox: queue.SimpleQueue[Outgoing | None],
) -> Iterator[trainer_pb2.TrainRequest]:
    # Read by a daemon thread of gRPC's, which ends with the None that ends the connection.
    gathered: list[Outgoing] = []
    size = 0
    while (message := outbox.get()) is not None:
        length = message.size if isinstance(message, ReportParts) else message.ByteSize()
        if gathered and size + length > _REQUEST_BYTES:
            yield request_of(gathered)
            gathered, size = [], 0
        gathered.append(message)
        size += length
        if outbox.empty():
            yield request_of(gathered)
            gathered, size = [], 0
    if gathered:
        yield request_of(gathered)
