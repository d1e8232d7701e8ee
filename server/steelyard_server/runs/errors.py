"""What a caller may be told. One table (service/errors.py) maps these to gRPC statuses.

RunError
├── Invalid        a malformed argument; nothing was changed
├── Missing        no such dataset, run, bookmark or step
├── Exists         the name, rank or position is taken by something else
├── Unready        the call does not fit the state of the run
│   └── Unknown    its policy names a method, or a field of one, that this server does not have
├── Superseded     a newer attempt began, or the run was rewound
├── Unavailable    the server drains or cannot write; try again
│   └── NotNow     ... and nothing was done
└── Exhausted      a limit was reached
"""

from __future__ import annotations


class RunError(Exception):
    """An expected error: its message is for the caller; `reason`, one word, for who counts them."""

    def __init__(self, message: str, *, reason: str = "other") -> None:
        super().__init__(message)
        self.reason = reason


class Invalid(RunError):
    pass


class Missing(RunError):
    pass


class Exists(RunError):
    pass


class Unready(RunError):
    pass


class Unknown(Unready):
    pass


class Superseded(RunError):
    pass


class Unavailable(RunError):
    pass


class NotNow(Unavailable):
    """Nothing was done, or will be: the same may be asked for again after `retry_after` seconds, as if for the first
    time."""

    retry_after = 0.1


class Exhausted(RunError):
    """No room for it. `retry_after`: where it was refused before anything was done, and for this moment only, the
    seconds after which it may be asked for again."""

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
