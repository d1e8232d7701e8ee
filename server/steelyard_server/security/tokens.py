"""Bearer tokens: static ones by their hash, JWTs by their signature. No token is kept, logged or told."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import jwt

from steelyard_server.security.errors import Refused
from steelyard_server.security.evidence import Evidence, Hashed, Proven
from steelyard_server.security.keys import Key, Keys
from steelyard_server.security.watched import Watched

_MAX_TOKEN = 16 << 10
_PATIENCE_SECONDS = 5.0
"""For which a call waits for keys that are being fetched."""
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "token_expired"),
    (jwt.InvalidSignatureError, "token_signature"),
    (jwt.InvalidAudienceError, "token_audience"),
    (jwt.InvalidIssuerError, "token_issuer"),
    (jwt.ImmatureSignatureError, "token_not_yet_valid"),
    (jwt.InvalidIssuedAtError, "token_not_yet_valid"),
    (jwt.MissingRequiredClaimError, "token_claim_missing"),
    (jwt.InvalidAlgorithmError, "token_algorithm"),
)


@dataclass(frozen=True, slots=True)
class JwtRules:
    """What a token must say. `max_lifetime`: in seconds, of its whole life where it says when that began, and from now
    on in any case."""

    algorithms: frozenset[str]
    audience: str
    issuer: str | None
    leeway: float
    max_lifetime: float


class Jwts:
    """Verifies tokens against keys. For the event loop; only the fetching of keys leaves it."""

    def __init__(
        self, rules: JwtRules, keys: Keys, executor: Executor, clock: Callable[[], float] = time.time
    ) -> None:
        self._rules, self._keys, self._executor, self._clock = rules, keys, executor, clock
        self._refreshing: asyncio.Future[None] | None = None

    @property
    def files(self) -> list[Watched[Any]]:
        return self._keys.files

    async def prove(self, token: str) -> Proven:
        """Refused where anything about the token is not as the rules say."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise Refused("token_malformed") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._rules.algorithms:
            raise Refused("token_algorithm")
        keys = self._keys.find(kid, algorithm)
        if self._keys.due(bool(keys)):
            fetched = self._refresh()
            # While no newer ones can be had, who is known by those that there are does not wait for them.
            if not keys or not self._keys.away:
                # Not for as long as it takes: whoever sends byte by byte is never late for gRPC's or HTTP's timeouts.
                await asyncio.wait([fetched], timeout=_PATIENCE_SECONDS)
                keys = self._keys.find(kid, algorithm)
        if not keys:
            raise Refused("token_key_unknown")
        return self._verified(token, keys, algorithm)

    def _refresh(self) -> asyncio.Future[None]:
        """One for all who ask meanwhile: strangers, too, cause it, and must not take more than one thread."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().run_in_executor(self._executor, self._keys.refresh)
        return self._refreshing

    def _verified(self, token: str, keys: list[Key], algorithm: str) -> Proven:
        reason = "token_signature"
        for key in keys:
            try:
                return self._checked(self._decode(token, key, algorithm))
            except jwt.InvalidSignatureError:
                continue
            except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
                reason = next((word for kind, word in _REASONS if isinstance(error, kind)), "token_malformed")
                break
        raise Refused(reason)

    def _decode(self, token: str, key: Key, algorithm: str) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.material,
            algorithms=[algorithm],
            audience=self._rules.audience,
            issuer=self._rules.issuer,
            leeway=self._rules.leeway,
            options={"require": ["exp", "aud"] + (["iss"] if self._rules.issuer else [])},
        )
        return claims

    def _checked(self, claims: dict[str, Any]) -> Proven:
        end = float(claims["exp"])
        begun = [float(claims["iat"])] if "iat" in claims else []
        if any(
            end - moment > self._rules.max_lifetime + self._rules.leeway for moment in [*begun, self._clock()]
        ):
            raise Refused("token_lives_too_long")
        return Proven(claims, end + self._rules.leeway)


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def made() -> tuple[str, str]:
    """A new token of 256 random bits, and its hash for the access file."""
    token = f"steelyard_{secrets.token_urlsafe(32)}"
    return token, hash_of(token)


def from_header(values: list[str | bytes]) -> str | None:
    """The token of the `authorization` metadata; None where there is none. Refused where it is no bearer token."""
    if not values:
        return None
    if len(values) > 1 or not isinstance(values[0], str):
        raise Refused("header_malformed")
    scheme, _, token = values[0].partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > _MAX_TOKEN or not token.isascii():
        raise Refused("header_malformed")
    return token


async def prove(token: str, jwts: Jwts | None) -> Evidence:
    """A JWT where there are keys for such, and it looks like one; else a static token."""
    if jwts is not None and token.count(".") == 2:
        return await jwts.prove(token)
    return Hashed(hash_of(token))
