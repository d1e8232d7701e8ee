"""What a session is joined with."""

from __future__ import annotations

from dataclasses import dataclass

from steelyard.arguments import flag, seconds, whole
from steelyard.attempt import resolve
from steelyard.credentials import Credentials
from steelyard.info import Staleness

# Batches held ahead at most where the caller does not say.
_PREFETCH = 16


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """The arguments of Run.join, which explains each, and where the run is."""

    address: str
    run: str
    rank: int = 0
    world_size: int = 1
    replica: int = 0
    reports: bool | None = None
    start_step: int | None = None
    attempt: str | None = None
    prefetch: int | None = None
    timeout: float = 300.0
    reconnect_timeout: float = 600.0
    fingerprint: str = ""
    credentials: Credentials | None = None

    @property
    def name(self) -> str:
        """Whose session this is, as messages say it."""
        return f"run {self.run!r}, rank {self.rank} of {self.world_size} at {self.address}"

    def checked(self) -> SessionOptions:
        """The same with plain values and the attempt's token. InvalidArgument names what is wrong."""
        world_size = whole("world_size", self.world_size, at_least=1, below=2**32)
        replica = whole("replica", self.replica, below=2**32)
        return SessionOptions(
            address=self.address,
            run=self.run,
            rank=whole("rank", self.rank, below=world_size),
            world_size=world_size,
            replica=replica,
            reports=flag("reports", self.reports, default=replica == 0),
            start_step=None if self.start_step is None else whole("start_step", self.start_step),
            attempt=resolve(self.attempt, world_size=world_size, replica=replica),
            prefetch=None
            if self.prefetch is None
            else whole("prefetch", self.prefetch, at_least=1, below=2**32),
            timeout=seconds("timeout", self.timeout),
            reconnect_timeout=seconds("reconnect_timeout", self.reconnect_timeout),
            fingerprint=self.fingerprint,
            credentials=self.credentials,
        )


def default_prefetch(staleness: Staleness) -> int:
    """As many batches as can be drawn ahead of the reports, within reason."""
    if staleness == "any":
        return _PREFETCH
    return min(max(staleness, 1), _PREFETCH)
