"""What a caller has shown to be true of itself. Pure; no token is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Certificate:
    """A client certificate that the TLS handshake has verified."""

    names: frozenset[str]
    common_name: str


@dataclass(frozen=True, slots=True)
class Hashed:
    """A bearer token, by its SHA-256 in hexadecimal."""

    digest: str


@dataclass(frozen=True, slots=True)
class Proven:
    """A JWT whose signature and times were right."""

    claims: Mapping[str, Any]
    expires_at: float


@dataclass(frozen=True, slots=True)
class Local:
    """It could open the unix socket."""


Evidence = Certificate | Hashed | Proven | Local
