"""Memory that is free, and that the C library keeps for the next time: given back to the system.

What came in a burst, such as headers without an end on many connections, is freed in pieces between others, and glibc
then keeps it: hundreds of MiB that a container's limit counts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable


class Memory:
    """Does nothing where the C library cannot give back."""

    EVERY_SECONDS = 10.0
    """Giving back takes some milliseconds of a thread, and where there is nothing to give back, less."""

    def __init__(self) -> None:
        self._trim = _malloc_trim()

    def give_back(self) -> None:
        if self._trim is not None:
            self._trim(0)


def _malloc_trim() -> Callable[[int], int] | None:
    """None where there is another C library than glibc."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    given: Callable[[int], int] = trim
    return given
