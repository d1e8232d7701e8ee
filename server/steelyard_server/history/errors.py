"""Errors of the store.

StoreError
├── StoreBusy         another process (or this one) holds the directory
├── StoreTooNew       a newer Steelyard wrote the directory
├── StoreDamaged      its data file cannot be read
├── StoreFull         the map may grow no further: nothing of the write was applied
├── StoreFailed       the outcome of a write is unknown, or the store cannot be used right now
├── StoreOverloaded   the queue stayed full: the write was not accepted
└── RecordDamaged     what is stored at `place` is not what was written there
"""

from __future__ import annotations

import re
from pathlib import Path


class StoreError(Exception):
    """Anything that the store can say. The message is for an operator."""


class StoreBusy(StoreError):
    """The directory is held by another opener. Nothing was touched."""


class StoreTooNew(StoreError):
    """The directory has a newer format version than this program knows. Nothing was touched."""


class StoreDamaged(StoreError):
    """The data file of `directory` cannot be opened as it is. It was not changed."""

    def __init__(self, directory: Path, why: str) -> None:
        super().__init__(
            f"{directory}/data.mdb is damaged: {why}. Nothing was changed. `steelyard check --data-dir {directory}` "
            "lists what is wrong; to go back to a backup, move the folder aside and run "
            f"`steelyard restore --from BACKUPS --data-dir {directory}`"
        )


class StoreFull(StoreError):
    """The map reached max_map_size. The write was not applied."""


class StoreFailed(StoreError):
    """A commit failed, so its outcome is unknown until what is held in memory has been loaded again."""


class StoreOverloaded(StoreError):
    """The write queue stayed full for the whole deadline. The write was not accepted."""


class RecordDamaged(StoreError):
    """What is stored at `place` failed its check; it was not returned. Other places can still be read."""

    def __init__(self, place: str, why: str = "it fails its checksum") -> None:
        super().__init__(place, why)
        self.place = place
        self.why = why

    def named(self, run: str) -> RecordDamaged:
        """The same by the run's name: the store knows a number, which nobody can ask for."""
        return RecordDamaged(re.sub(r"^run \d+\b", f"run {run!r}", self.place), self.why)

    def __str__(self) -> str:
        return f"{self.place}: {self.why}"
