"""Which backups are worth their space. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def superseded(names: Sequence[str], keep: int, newest: str) -> list[str]:
    """Of whole backups, oldest first, those beyond the `keep` last ones. Never `newest`, which has just been made, also
    where the clock went back and it sorts before others.
    """
    others = [name for name in names if name != newest]
    return others[: max(0, len(others) - max(0, keep - 1))]
