"""The answers of one call that gives many, read one by one, each with a deadline: gRPC knows one for a call alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from steelyard import forking
from steelyard.calling import metadata
from steelyard.channel import errors_of, explained, told_in_words
from steelyard.errors import DeadlineExceeded, from_rpc_error
from steelyard.transport import Stubs, Transport

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


def answers(
    transport: Transport,
    method: Callable[[Stubs], grpc.UnaryStreamMultiCallable[RequestT, ResponseT]],
    request: RequestT,
    purpose: str,
) -> Iterator[ResponseT]:
    """A generator; closing it ends the call. DeadlineExceeded where an answer takes longer than the transport's
    timeout; else the errors of the call, with `purpose`, what was asked for in words."""
    with transport.stubs(purpose) as stubs:
        with errors_of(transport.address, purpose, transport.timeout, transport.credentials):
            # Where there is TLS, gRPC would wait for a handshake that can never succeed, and say nothing.
            call = method(stubs)(request, wait_for_ready=not transport.secure, metadata=metadata())
        forking.keep(call)
        try:
            while (answer := _next(call, transport, purpose)) is not None:
                yield answer
        finally:
            # Not by a forked child, which may let go of its parent's.
            if forking.allowed():
                call.cancel()


def _next(call: Any, transport: Transport, purpose: str) -> Any:
    """The next answer of a call, None at its end."""
    late = threading.Event()

    def give_up() -> None:
        late.set()
        call.cancel()

    timer = threading.Timer(transport.timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        return next(call, None)
    except grpc.RpcError as error:
        failure = told_in_words(from_rpc_error(error), transport.address, transport.credentials)
        if late.is_set():
            failure = DeadlineExceeded("no message came")
        raise explained(failure, transport.address, purpose, transport.timeout) from None
    finally:
        timer.cancel()
