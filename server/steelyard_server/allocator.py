"""Memory that was freed and that the C library keeps: how little of it stays with the process.

Each thread would otherwise have its own free memory, of which nobody else takes any: a server that has saved a run of
1e7 examples then holds three times what the run takes. Only glibc's allocator is told; others do as they do.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

_M_ARENA_MAX = -8


def _function(name: str) -> Callable[..., int] | None:
    """A function of glibc; None where another library is in its place."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


_mallopt, _malloc_trim = _function("mallopt"), _function("malloc_trim")


def share_among_threads() -> bool:
    """Has all threads of this process allocate from one place from now on; whether that was done. For a process that
    is all ours, before its threads begin."""
    return _malloc_trim is not None and _mallopt is not None and bool(_mallopt(_M_ARENA_MAX, 1))


def give_back() -> bool:
    """Gives what is free in whole pages back to the system; whether there was any. Some milliseconds, in which others
    who allocate may wait."""
    return _malloc_trim is not None and bool(_malloc_trim(0))
