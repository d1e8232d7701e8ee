"""Who makes the call that is being answered: set by the guard, read by what logs, counts and traces."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass

from steelyard_server.security.grants import EVERYTHING, Rights
from steelyard_server.security.quotas import UNLIMITED, Quota


@dataclass(frozen=True, slots=True)
class Caller:
    """A principal that was recognised, and what it may do."""

    principal: str
    """Its name in the access file; "anyone" where there is no such file."""
    rights: Rights
    quota: Quota = UNLIMITED
    expires_at: float | None = None
    """Unix seconds from which its token counts no more, leeway included; None for what does not expire by itself."""

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and time.time() >= self.expires_at


ANYONE = Caller("anyone", EVERYTHING)
"""Without an access file whoever reaches the server may do everything."""

caller: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""None before the guard knows it, for calls that need no credentials (health), and where it refused them."""
