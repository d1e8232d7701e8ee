"""Many rows deleted in small pieces, so that no commit of somebody else waits for all of them."""

from __future__ import annotations

from collections.abc import Iterator

from .ops import DeleteRange, Table
from .store import Store

ROWS_A_RANGE = 64
"""Rows that one op deletes, or that are copied at a time."""

_RANGES_A_PAGE = 64


def deletes(store: Store, table: Table, start: bytes, stop: bytes) -> Iterator[DeleteRange]:
    """Ops, one by one, that delete the rows that there are in [start, stop); they may be committed meanwhile."""
    while keys := store.keys(table, start, stop, limit=_RANGES_A_PAGE * ROWS_A_RANGE):
        for first in range(0, len(keys), ROWS_A_RANGE):
            some = keys[first : first + ROWS_A_RANGE]
            yield DeleteRange(table, some[0], some[-1] + b"\0")
        start = keys[-1] + b"\0"
