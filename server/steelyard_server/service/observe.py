"""The outermost interceptor: what is counted, logged and traced of every call, whoever makes it and however it ends.

Handlers, and the interceptors within, say more about a call with structlog.contextvars.bind_contextvars: `principal`,
`run`, `step`. What is bound stands in every line that is logged on behalf of the call, on whichever thread.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from structlog.contextvars import bind_contextvars

from steelyard_server.log import logger
from steelyard_server.observing.metrics import Metrics
from steelyard_server.observing.tracing import NO_TRACES, Traces

REQUEST_ID = "x-request-id"
SLOW_SECONDS = 1.0
"""A unary call that took longer is told of."""
TAKES_LONG = "/steelyard.v1.AdminService/"
"""Of the methods that begin so, no duration is worth a warning: they read or write all that is stored."""
TRAIN = "/steelyard.v1.TrainerService/Train"
UNKNOWN = "unknown"
"""Stands for all methods that the server does not have: their names are the caller's to invent."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_CALLERS_FAULT = {
    *(
        "OK",
        "CANCELLED",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "FAILED_PRECONDITION",
        "OUT_OF_RANGE",
    ),
    *("ABORTED", "UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"),
}
"""Ends of a call that are nothing to look into."""

Context = grpc.aio.ServicerContext[Any, Any]

_log = logger(__name__)


class Observe(grpc.aio.ServerInterceptor):
    def __init__(self, metrics: Metrics, traces: Traces = NO_TRACES) -> None:
        self._metrics = metrics
        self._traces = traces

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        # Each call has a task of its own, and so a context of its own: nothing has to be unbound.
        bind_contextvars(request_id=_request_id(details), method=details.method)
        handler = await continuation(details)
        if handler is None:
            self._metrics.handled.labels(UNKNOWN, grpc.StatusCode.UNIMPLEMENTED.name).inc()
            # Not its name either: it can be anything.
            bind_contextvars(method=UNKNOWN)
            _log.debug("call", code=grpc.StatusCode.UNIMPLEMENTED.name)
            return None
        return self._observed(handler, details)

    def _observed(self, handler: Any, details: grpc.HandlerCallDetails) -> Any:
        """`handler` with its behaviour watched. One that is no coroutine would run on another thread: it is left."""
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behaviour = getattr(handler, kind)
            if behaviour is None:
                continue
            # The guard reads the one message of a unary call itself.
            unary = kind in ("unary_unary", "stream_unary")
            if inspect.isasyncgenfunction(behaviour):
                watched: Any = self._yielding(behaviour, details)
            elif inspect.iscoroutinefunction(behaviour):
                watched = self._answering(behaviour, details, unary=unary)
            else:
                return handler
            make = getattr(grpc, f"{kind}_rpc_method_handler")
            return make(
                watched,
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return handler

    def _answering(self, behaviour: Any, details: grpc.HandlerCallDetails, *, unary: bool) -> Any:
        async def answer(request: Any, context: Context) -> Any:
            with self._watching(details, context, unary=unary):
                return await behaviour(request, context)

        return answer

    def _yielding(self, behaviour: Any, details: grpc.HandlerCallDetails) -> Any:
        async def answer(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._watching(details, context, unary=False):
                async for one in behaviour(request, context):
                    yield one

        return answer

    @contextmanager
    def _watching(self, details: grpc.HandlerCallDetails, context: Context, *, unary: bool) -> Iterator[None]:
        metrics, method, began = self._metrics, details.method, time.monotonic()
        code = grpc.StatusCode.UNKNOWN.name
        metrics.in_flight.labels(method).inc()
        if method == TRAIN:
            metrics.streams.inc()
        span = self._traces.begin(method, details.invocation_metadata)
        try:
            yield
            code = _code_of(context, grpc.StatusCode.OK.name)
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED.name
            raise
        except grpc.aio.AbortError:
            code = _code_of(context, code)
            raise
        finally:
            seconds = time.monotonic() - began
            span.end(code)
            metrics.in_flight.labels(method).dec()
            metrics.handled.labels(method, code).inc()
            if unary:
                metrics.duration.labels(method).observe(seconds)
            if method == TRAIN:
                metrics.streams.dec()
            _tell(code, seconds, unary=unary, long=method.startswith(TAKES_LONG))


def _tell(code: str, seconds: float, *, unary: bool, long: bool) -> None:
    """One line for each call: at debug where all is as it should be, else where one would look. What a caller took back
    at once is as it should be: thousands of these cost no lines."""
    if code not in _CALLERS_FAULT or (unary and not long and seconds > SLOW_SECONDS):
        tell = _log.warning
    elif code not in ("OK", "CANCELLED") or not unary:
        tell = _log.info
    else:
        tell = _log.debug
    tell("call", code=code, seconds=round(seconds, 6))


def _code_of(context: Context, otherwise: str) -> str:
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return _CODES.get(code, otherwise) if code else otherwise


def _request_id(details: grpc.HandlerCallDetails) -> str:
    """What the caller calls the call, where that is harmless; else a name of ours."""
    for key, value in details.invocation_metadata or ():
        if key == REQUEST_ID and isinstance(value, str) and _SANE_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
