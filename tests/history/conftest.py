"""A real store in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steelyard_server.history.store import Put, Store, Table


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture
def flip(store: Store) -> Callable[[Table, bytes, int], None]:
    """Flips one bit of what is stored, and makes it durable."""

    def flip_bit(table: Table, key: bytes, bit: int) -> None:
        value = bytearray(store.get(table, key) or b"")
        value[bit // 8] ^= 1 << bit % 8
        store.commit([Put(table, key, bytes(value))])

    return flip_bit
