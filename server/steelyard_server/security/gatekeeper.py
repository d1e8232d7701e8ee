"""Tells who calls, from what the call brings with it; and whether that still holds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Protocol

from steelyard_server.config import ConfigError, Settings
from steelyard_server.log import logger, printable
from steelyard_server.security import principals, tokens
from steelyard_server.security.caller import ANYONE, Caller
from steelyard_server.security.errors import Refused, Unauthenticated
from steelyard_server.security.evidence import Certificate, Evidence, Local, Proven
from steelyard_server.security.keys import FileKeys, Keys, UrlKeys
from steelyard_server.security.quotas import Bucket
from steelyard_server.security.tokens import JwtRules, Jwts
from steelyard_server.security.watched import Watched

_LOGGED_A_SECOND = 2.0
"""Refusals of each reason; all are counted. Else whoever knocks often enough would fill the disk that the log is on."""
_WAYS = {
    "certificate": ("a client certificate", "tls_client_ca, and tls_client_certs not to be none"),
    "jwt": ("a signed token (JWT)", "jwt_keys"),
    "local": ("being on this machine (local = true)", "listen to be unix:PATH"),
}
"""Ways of recognising a principal that not every server has: in words, and the settings that it needs."""
_NAMES_LOGGED = 8
"""Of a certificate, which may have hundreds."""
_NAMES = ("peer_uri", "peer_dns", "peer_email", "peer_ip")

_log = logger(__name__)


class Peer(Protocol):
    """What of a call's context tells who it is from."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...
    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...
    def peer(self) -> str: ...


class Tally:
    """What was refused since the server started, by reason. Counted on the event loop; read from any thread."""

    def __init__(self) -> None:
        self.auth_failures: Counter[str] = Counter()
        self.quota_refused: Counter[tuple[str, str]] = Counter()
        self.on_auth_failure: Callable[[str], object] = lambda reason: None
        self.on_quota_refused: Callable[[str, str], object] = lambda principal, reason: None

    def auth_failed(self, reason: str) -> None:
        self.auth_failures[reason] += 1
        self.on_auth_failure(reason)

    def over_quota(self, principal: str, reason: str) -> None:
        self.quota_refused[principal, reason] += 1
        self.on_quota_refused(principal, reason)


class Gatekeeper:
    """Without an access file everyone is let in. For the event loop."""

    def __init__(self, settings: Settings, executor: Executor) -> None:
        """ConfigError: the access file or the keys cannot be read or are not right. Keys are fetched on `executor`."""
        self.tally = Tally()
        self._unix = settings.listen.startswith("unix:")
        self._table = None if settings.access is None else _watched(settings.access)
        self._jwts = _jwts(settings, executor)
        self._logged: dict[str, Bucket] = {}
        if self._table is not None:
            _warn_of_ways(self._table.value, settings)

    @property
    def files(self) -> list[Watched[Any]]:
        """Those that somebody has to look at (watched.Looking): here nobody does, since a look may take long."""
        keys = [] if self._jwts is None else self._jwts.files
        return [*([] if self._table is None else [self._table]), *keys]

    @property
    def guards(self) -> bool:
        return self._table is not None

    @property
    def generation(self) -> int:
        """Another number means that rights may have changed. Read before somebody is identified, it is never newer than
        what they were identified by."""
        return 0 if self._table is None else self._table.generation

    async def identify(self, method: str, context: Peer) -> tuple[Caller, Evidence | None]:
        """Unauthenticated: no credentials, or none that count. A token, where there is one, decides alone."""
        if self._table is None:
            return ANYONE, None
        evidence = None
        try:
            evidence = await self._evidence(context)
            found = self._table.value.recognise(evidence)
            if found is None:
                raise Refused("principal_unknown")
        except Refused as refused:
            self._refuse(refused.reason, method, context.peer(), evidence)
            raise Unauthenticated from None
        return found, evidence

    def again(self, evidence: Evidence | None) -> Caller | None:
        """Who that is by now; None where it is nobody any more."""
        if self._table is None or evidence is None:
            return ANYONE
        return self._table.value.recognise(evidence)

    async def _evidence(self, context: Peer) -> Evidence:
        metadata = context.invocation_metadata() or ()
        token = tokens.from_header([value for key, value in metadata if key == "authorization"])
        if token is not None:
            return await tokens.prove(token, self._jwts)
        if self._unix:
            return Local()
        auth = context.auth_context()
        if "x509_pem_cert" not in auth:
            raise Refused("no_credentials")
        return certificate(auth)

    def _refuse(self, reason: str, method: str, peer: str, evidence: Evidence | None) -> None:
        self.tally.auth_failed(reason)
        now = time.monotonic()
        bucket = self._logged.setdefault(reason, Bucket(_LOGGED_A_SECOND, now))
        if bucket.wait(now, 1.0) == 0:
            bucket.spend(1.0)
            _log.warning("caller_refused", reason=reason, method=method, peer=peer, **_shown(evidence))


def certificate(auth: Mapping[str, Any]) -> Certificate:
    """From what gRPC says of a verified peer."""
    names = frozenset(_text(name) for kind in _NAMES for name in auth.get(kind, ()))
    return Certificate(names, "".join(_text(name) for name in list(auth.get("x509_common_name", ()))[:1]))


def _shown(evidence: Evidence | None) -> dict[str, object]:
    """By what somebody could be put into the access file, as far as it was verified; of a token that is known by its
    hash, nothing."""
    if isinstance(evidence, Certificate):
        names = [printable(name) for name in sorted(evidence.names)[:_NAMES_LOGGED]]
        return {"names": names, "common_name": printable(evidence.common_name)}
    if isinstance(evidence, Proven):
        return {"subject": printable(str(evidence.claims.get("sub", "")))}
    return {}


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _watched(path: Path) -> Watched[principals.Table]:
    try:
        return Watched("access", [path], lambda contents: principals.parse(contents[0]))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def _jwts(settings: Settings, executor: Executor) -> Jwts | None:
    if settings.jwt_keys is None:
        return None
    allowed = frozenset(settings.jwt_algorithms)
    rules = JwtRules(
        allowed,
        settings.jwt_audience or "",
        settings.jwt_issuer,
        settings.jwt_leeway_seconds,
        settings.jwt_max_lifetime_seconds,
    )
    keys: Keys = (
        UrlKeys(settings.jwt_keys, allowed)
        if "://" in settings.jwt_keys
        else FileKeys(Path(settings.jwt_keys), allowed)
    )
    return Jwts(rules, keys, executor)


def _warn_of_ways(table: principals.Table, settings: Settings) -> None:
    """Principals that nobody can be here: the same file may serve several servers, so it is not refused."""
    possible = {"token"}
    if settings.listen.startswith("unix:"):
        possible.add("local")
    if settings.client_certs == "required":
        possible.add("certificate")
    if settings.jwt_keys is not None:
        possible.add("jwt")
    for way in sorted(table.ways - possible):
        what, needed = _WAYS[way]
        _log.warning(
            "principals_unreachable",
            way=way,
            fault=f"the access file has principals that are recognised by {what}, and with these settings nobody is:"
            f" that needs {needed}",
        )
