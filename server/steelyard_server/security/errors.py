"""What the guard refuses, as errors of the table in service/errors.py."""

from __future__ import annotations


class Forbidden(Exception):
    """The caller is known and may not do this."""


class Unauthenticated(Exception):
    """The caller has shown nothing, or nothing that counts. One text for all reasons: the log has them."""

    def __init__(self, text: str = "expected credentials that this server knows") -> None:
        super().__init__(text)


class Refused(Exception):
    """Not let in. `reason` is one of a small fixed set of words, for logs and counters; the caller is not told."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
