"""The one table from what can go wrong to what a caller is told."""

from __future__ import annotations

import grpc

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
