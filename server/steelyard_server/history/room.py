"""What of a store's map is kept back, and what a write needs of it. Pure.

0 .................. max - headroom ........... max - reserve ... max
  anything                                   | what runs that there are write | what makes room
"""

from __future__ import annotations

from collections.abc import Iterable

from .ops import Op, Put

MIB = 1 << 20
PAGE = 4096
_PAGE_HEAD = 16

PIECE_PAGES = 4
PIECE_BYTES = PIECE_PAGES * PAGE - _PAGE_HEAD
"""A value of more is stored in pieces of so many (pieces.py). Of a batch of 1024 ids the draw takes 4 pages and the
report 2, so what is long enough for a piece comes free all the time."""
_IN_TREE = 64
"""Of a row beside its value, in a page that may be half empty."""

PATHS = 64 * PAGE
"""The pages from the roots to what a transaction changes, copied by it whatever its size, and the list of those that
it frees. Both are free again two commits later."""


def headroom(most: int) -> int:
    """Bytes of a map of at most `most` that are kept for runs under way: a sixteenth, at least 4 MiB, at most a
    quarter."""
    return min(max(most // 16, 4 * MIB), most // 4)


def reserve(most: int) -> int:
    """Of these, the bytes that are kept for what makes room: deleting copies the pages that it changes."""
    return min(max(most // 64, MIB), most // 8)


def cost(ops: Iterable[Op]) -> int:
    """Bytes that a transaction of `ops` takes, roughly and rather too many: a large value has pages of its own, a
    small one shares pages that may be half empty. Deleting takes nothing."""
    return sum(_pages(op) for op in ops if isinstance(op, Put))


def _pages(op: Put) -> int:
    pieces, rest = divmod(len(op.value), PIECE_BYTES)
    size = len(op.key) + rest + _PAGE_HEAD
    last = -(-size // PAGE) * PAGE if size > PAGE // 2 else 2 * size
    return pieces * (PIECE_PAGES * PAGE + _IN_TREE) + last
