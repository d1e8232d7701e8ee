"""Every error that Steelyard raises on purpose, as one tree.

    SteelyardError                      any of the below
    ├── InvalidArgument (ValueError)    an argument is wrong; the message says what was expected and what came
    │   └── MismatchedLosses            losses that do not belong to the batch: wrong count or order
    ├── NotFound (LookupError)          no such dataset, run, column, bookmark or step
    ├── AlreadyExists                   the name, the rank or the value is taken
    ├── FailedPrecondition              right call, wrong moment: not drawn yet, no longer retained
    │   ├── StalenessError              the wait would be for reports that only the waiting trainer can make
    │   ├── SessionClosed               the session was left or closed
    │   └── ForkedSession               a session is used in another process than the one that opened it
    ├── ReportRefused                   the run refused a report and is as it was; `code` says why
    ├── Aborted                         a newer attempt began or the run was rewound: this trainer must stop
    ├── Unauthenticated                 the server does not know who asks: no token or certificate, or a bad one
    ├── PermissionDenied                it knows, and this is not allowed
    ├── Unavailable                     the server cannot be reached, drains or cannot write: try again later
    │   └── HandshakeFailed             there is no TLS with it: a certificate was refused, here or there
    ├── DeadlineExceeded (TimeoutError) a wait took longer than it was allowed to
    ├── ResourceExhausted               a message over the size limit, or no room left
    ├── Unimplemented                   the server is of before there was what was asked for
    ├── DataLoss                        a stored record fails its checksum; the message gives its place
    └── Internal                        a bug in the server, not an expected error

Errors cross processes (DataLoader workers, launchers), so each survives pickling with its message and code.
"""

# ruff: noqa: N818 -- the names are those of the gRPC statuses, which every reader of a log knows

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import grpc


class SteelyardError(Exception):
    """Base of the tree. `code` is the name of its gRPC status, None where there is none."""

    default_code: ClassVar[str | None] = None

    def __init__(self, message: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        self.code: str | None = self.default_code if code is None else code
        self.retry_after: float | None = None
        """Seconds after which the same may be asked again, where the server refused it before it did anything."""
        self.answered = False
        """Whether the server itself said so, and not the connection to it or who stands in between."""


class InvalidArgument(SteelyardError, ValueError):
    """An argument is wrong. The message says what was expected and what came."""

    default_code = "INVALID_ARGUMENT"


class MismatchedLosses(InvalidArgument):
    """Losses that do not belong to the batch: wrong count or order. The message names both."""


class NotFound(SteelyardError, LookupError):
    """No such dataset, run, column, bookmark or step."""

    default_code = "NOT_FOUND"


class AlreadyExists(SteelyardError):
    """The name, the rank or the value is taken."""

    default_code = "ALREADY_EXISTS"


class FailedPrecondition(SteelyardError):
    """The call is right, the moment is not."""

    default_code = "FAILED_PRECONDITION"


class StalenessError(FailedPrecondition):
    """A wait for reports that only the waiting trainer can make; the message names both numbers."""


class SessionClosed(FailedPrecondition):
    """The session was left or closed; join again."""


class ForkedSession(FailedPrecondition):
    """A session is used in another process than the one that opened it."""


class ReportRefused(SteelyardError):
    """The run refused a report and is as it was; the same report would be refused again. `code` says why."""


class MissingSignalWarning(UserWarning):
    """A run's policy reads a signal that its reports do not have; the message says which method does, and how to report
    it. No error, and not in the tree: the run goes on, by what the method does with examples that were never
    reported."""


class Aborted(SteelyardError):
    """A newer attempt has begun or the run was rewound: this trainer must stop."""

    default_code = "ABORTED"


class Unavailable(SteelyardError):
    """The server cannot be reached, drains or cannot write: try again later."""

    default_code = "UNAVAILABLE"


class HandshakeFailed(Unavailable):
    """There is no TLS with the server. The message says whose certificate was refused by whom, and why."""


class Unauthenticated(SteelyardError):
    """The server does not know who asks: no token or certificate came, or one that it does not take."""

    default_code = "UNAUTHENTICATED"


class PermissionDenied(SteelyardError):
    """The server knows who asks, and does not allow them this."""

    default_code = "PERMISSION_DENIED"


class Unimplemented(SteelyardError):
    """The server is of before there was what was asked for."""

    default_code = "UNIMPLEMENTED"


class DeadlineExceeded(SteelyardError, TimeoutError):
    """A wait took longer than it was allowed to. The message says what was waited for."""

    default_code = "DEADLINE_EXCEEDED"


class ResourceExhausted(SteelyardError):
    """A message over the size limit, or no room left."""

    default_code = "RESOURCE_EXHAUSTED"


class DataLoss(SteelyardError):
    """A stored record fails its checksum. The message gives its place."""

    default_code = "DATA_LOSS"


class Internal(SteelyardError):
    """A bug in the server, not an expected error."""

    default_code = "INTERNAL"


# The numbers are gRPC's; they are the same in every language and never change.
_NAMES = {
    1: "CANCELLED",
    2: "UNKNOWN",
    3: "INVALID_ARGUMENT",
    4: "DEADLINE_EXCEEDED",
    5: "NOT_FOUND",
    6: "ALREADY_EXISTS",
    7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION",
    10: "ABORTED",
    11: "OUT_OF_RANGE",
    12: "UNIMPLEMENTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
    15: "DATA_LOSS",
    16: "UNAUTHENTICATED",
}

_CLASSES: dict[str, type[SteelyardError]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "OUT_OF_RANGE": InvalidArgument,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "FAILED_PRECONDITION": FailedPrecondition,
    "ABORTED": Aborted,
    "UNAVAILABLE": Unavailable,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "UNIMPLEMENTED": Unimplemented,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "RESOURCE_EXHAUSTED": ResourceExhausted,
    "DATA_LOSS": DataLoss,
    "INTERNAL": Internal,
    "UNKNOWN": Internal,
}


def code_name(code: int) -> str:
    """The name of a gRPC status number; a number that gRPC does not know is named as such."""
    return _NAMES.get(code, f"status {code}")


def from_code(code: int, message: str) -> SteelyardError:
    """The error of a gRPC status number: a plain SteelyardError where it has no class of its own."""
    name = code_name(code)
    return _CLASSES.get(name, SteelyardError)(message, code=name)


# Of these the server's own words may not be enough: who runs it finds the rest in its log by the request's id.
_LOGGED = frozenset(
    {"INTERNAL", "UNKNOWN", "UNAVAILABLE", "UNAUTHENTICATED", "PERMISSION_DENIED", "DATA_LOSS"}
)
# gRPC's own refusal of a call that is one too many.
_TOO_MANY = "Concurrent RPC limit exceeded"


def from_rpc_error(error: grpc.RpcError) -> SteelyardError:
    """The error that a failed call stands for, with the server's message."""
    # Errors of the in-process kind (a closed channel) may carry neither status nor details.
    status = getattr(error, "code", lambda: None)()
    if status is None:
        return SteelyardError(str(error))
    details = getattr(error, "details", lambda: None)()
    text = details or f"the call failed with {status.name} and no explanation"
    trailers = dict(getattr(error, "trailing_metadata", lambda: None)() or ())
    request = trailers.get("x-request-id")
    if request and status.name in _LOGGED:
        text = f"{text} (request {request})"
    failure = from_code(status.value[0], text)
    failure.retry_after = _retry_after(status.name, text, trailers)
    failure.answered = request is not None
    return failure


def _retry_after(status: str, text: str, trailers: dict[str, str | bytes]) -> float | None:
    told = str(trailers.get("grpc-retry-pushback-ms", ""))
    if told.isdecimal() and status in ("RESOURCE_EXHAUSTED", "UNAVAILABLE"):
        return int(told) / 1000
    return 0.1 if status == "RESOURCE_EXHAUSTED" and _TOO_MANY in text else None
