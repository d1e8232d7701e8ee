"""What a check finds, in plain words."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["damage", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`damage`: something is not what was written. `note`: worth knowing, and nothing is lost."""

    severity: Severity
    where: str
    """Which run, which steps, which rows."""
    what: str
    """What is wrong, and what it means."""
    do: str = ""
    """What to do about it."""

    def plain(self) -> dict[str, str]:
        return dataclasses.asdict(self)


@dataclass(slots=True)
class Report:
    """The end of a check. Sizes in bytes."""

    store_format: int = 0
    datasets: int = 0
    runs: int = 0
    journal_records: int = 0
    checkpoints: int = 0
    rows: int = 0
    file_bytes: int = 0
    live_bytes: int = 0
    free_bytes: int = 0
    tail_bytes: int = 0
    replayed_checkpoints: int = 0
    damages: int = 0
    notes: int = 0

    def plain(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
