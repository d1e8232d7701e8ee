"""What happens seldom and is told for long: backups and restores. Whoever knows sets it, from any thread."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Facts:
    """Times are seconds since 1970; None where it never happened, as far as the store knows."""

    backup_at: float | None = None
    """When the newest whole backup was begun."""
    backup_failures: int = 0
    """Since the server started."""
    restore_verified_at: float | None = None
    """When a backup was last restored and found whole."""
