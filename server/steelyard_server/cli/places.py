"""What the verbs that keep things share: backups as plain values, and times."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

from steelyard.admin import Backup
from steelyard_server.keeping.keeper import Kept


def plain(backup: Backup) -> dict[str, Any]:
    return dataclasses.asdict(backup)


def plain_kept(kept: Kept, place: str) -> dict[str, Any]:
    """The same of one that was read here."""
    made = kept.made
    return {
        "name": kept.name,
        "place": place,
        "created": 0.0 if made is None else made.created_unix_seconds,
        "bytes": 0 if made is None else made.bytes,
        "steelyard_version": "" if made is None else made.steelyard_version,
        "store_format": 0 if made is None else made.store_format,
        "datasets": 0 if made is None else len(made.datasets),
        "runs": {} if made is None else {run.name: run.next_step for run in made.runs},
        "verified": kept.verified_unix_seconds,
        "fault": kept.fault,
    }


def when(seconds: float | None) -> str:
    return "-" if not seconds else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
