"""Which backups are worth their space."""

from __future__ import annotations

from collections.abc import Sequence

from .places import Place, store_of


def superseded(names: Sequence[str], keep: int, newest: str) -> list[str]:
    """Of whole backups, oldest first, those beyond the `keep` last ones. Never `newest`, which has just been made, also
    where the clock went back and it sorts before others.
    """
    others = [name for name in names if name != newest]
    return others[: max(0, len(others) - max(0, keep - 1))]


def prune(place: Place, keep: int, newest: str) -> list[str]:
    """Removes the backups of the store of `newest` that are superseded; their names. Those of other stores stay."""
    own = [name for name in place.names() if store_of(name) == store_of(newest)]
    removed = superseded(own, keep, newest)
    for name in removed:
        place.remove(name)
    return removed
