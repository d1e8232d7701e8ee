"""The one table from what can go wrong to what a caller is told."""

from __future__ import annotations

import math

import grpc
from structlog.contextvars import get_contextvars

from steelyard_server.history.errors import (
    RecordDamaged,
    StoreError,
    StoreFull,
)
from steelyard_server.keeping.errors import BusyError, KeepingError, RefusedError
from steelyard_server.log import logger
from steelyard_server.policies.policy import PolicyError
from steelyard_server.runs.errors import (
    Exhausted,
    Exists,
    Invalid,
    Missing,
    NotNow,
    Superseded,
    Unavailable,
    Unready,
)
from steelyard_server.security.errors import Forbidden, Unauthenticated

_MAX_MESSAGE = 2000
"""Characters: a status travels in the trailers, which peers bound at a few KiB."""

_CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (Invalid, grpc.StatusCode.INVALID_ARGUMENT),
    (PolicyError, grpc.StatusCode.INVALID_ARGUMENT),
    (Missing, grpc.StatusCode.NOT_FOUND),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (Forbidden, grpc.StatusCode.PERMISSION_DENIED),
    (Exists, grpc.StatusCode.ALREADY_EXISTS),
    (Unready, grpc.StatusCode.FAILED_PRECONDITION),
    (Superseded, grpc.StatusCode.ABORTED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (Exhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (RecordDamaged, grpc.StatusCode.DATA_LOSS),
    (BusyError, grpc.StatusCode.ABORTED),
    (RefusedError, grpc.StatusCode.FAILED_PRECONDITION),
    (KeepingError, grpc.StatusCode.INTERNAL),
    (StoreFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (StoreError, grpc.StatusCode.UNAVAILABLE),
)

_log = logger(__name__)


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """The status and message for `error`. What is in no row is a bug: it is logged and answered INTERNAL."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            text = str(error)
            return code, text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}..."
    _log.error("unexpected_error", exc_info=error)
    return grpc.StatusCode.INTERNAL, f"unexpected {type(error).__name__}; the server's log has the details"


Trailers = tuple[tuple[str, str], ...]


def refusal_of(error: BaseException) -> tuple[grpc.StatusCode, str, Trailers]:
    """What a call is ended with, for context.abort."""
    return *status_of(error), trailers_of(error)


def trailers_of(error: BaseException) -> Trailers:
    """The request's id, by which the log has more of it; and when it may be asked for again, where it was refused for
    the moment and before anything was done (grpc-retry-pushback-ms, gRPC's own word for that)."""
    trailers = []
    if name := get_contextvars().get("request_id"):
        trailers.append(("x-request-id", str(name)))
    if isinstance(error, (Exhausted, NotNow)) and error.retry_after is not None:
        trailers.append(("grpc-retry-pushback-ms", str(math.ceil(1000 * error.retry_after))))
    return tuple(trailers)
