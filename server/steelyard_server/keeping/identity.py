"""Which store this is, for backups that share a place with those of others: eight hex digits, made once and kept in the
store, so that what is restored from its backups counts as the same."""

from __future__ import annotations

import re
import secrets

from steelyard_server.history.ops import Put, Table
from steelyard_server.history.store import Store

_KEY = b"store-id"
_NONE = "0" * 8


def identity(store: Store) -> str:
    """The store's; zeros where it has none yet: no server has made a backup of it."""
    found = (store.get(Table.META, _KEY) or b"").decode("ascii", "replace")
    return found if re.fullmatch("[0-9a-f]{8}", found) else _NONE


def give_identity(store: Store) -> str:
    """The same, made where there is none; also where the store is full. StoreError."""
    if identity(store) == _NONE:
        store.commit([Put(Table.META, _KEY, secrets.token_hex(4).encode())], frees=True)
    return identity(store)
