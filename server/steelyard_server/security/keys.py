"""The keys that sign tokens: from a file (PEM, JWKS or a secret), or from the URL of a JWKS."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from steelyard_server.config import JWT_ALGORITHMS, ConfigError
from steelyard_server.log import logger
from steelyard_server.security.watched import Watched

LEAST_SECRET_BYTES = 32
_LEAST_RSA_BITS = 2048
_FRESH_SECONDS = 300.0
"""Keys from a URL are fetched again when they are older."""
_COOLDOWN_SECONDS = 30.0
"""Between two fetches, also where a token names a key that is not known: whoever makes tokens up causes no more."""
_FETCH_SECONDS = 5.0
_HMAC = frozenset({"HS256", "HS384", "HS512"})
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512", "secp256k1": "ES256K"}

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """One key and the algorithms that it may be used with: those of its kind, of the ones that the settings name."""

    kid: str | None
    material: Any
    algorithms: frozenset[str]


class Keys(Protocol):
    @property
    def files(self) -> list[Watched[Any]]:
        """What they are read from, where that is no URL."""
        ...

    @property
    def away(self) -> bool:
        """Whether the last `refresh` got none."""
        ...

    def find(self, kid: str | None, algorithm: str) -> list[Key]:
        """The keys that may have signed. Never raises, never waits."""
        ...

    def refresh(self) -> None:
        """Gets newer keys where that is due. May wait for as long as it takes to fetch them."""
        ...

    def due(self, found: bool) -> bool:
        """Whether `refresh` would do something; `found`: whether there was a key for the token at hand."""
        ...


def matching(keys: Sequence[Key], kid: str | None, algorithm: str) -> list[Key]:
    """Those of the token's `kid`, and those that bear none."""
    return [
        key
        for key in keys
        if algorithm in key.algorithms and (key.kid is None or kid is None or key.kid == kid)
    ]


class FileKeys:
    """Read again when the file is looked at and has changed."""

    away = False

    def __init__(self, path: Path, allowed: frozenset[str]) -> None:
        """ConfigError: the file cannot be read, or holds no key for one of the algorithms `allowed`."""
        self._path, self._allowed = path, allowed
        try:
            self._file = Watched("jwt_keys", [path], self._load)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @property
    def files(self) -> list[Watched[Any]]:
        return [self._file]

    def find(self, kid: str | None, algorithm: str) -> list[Key]:
        return matching(self._file.value, kid, algorithm)

    def refresh(self) -> None:
        pass

    def due(self, found: bool) -> bool:
        return False

    def _load(self, contents: Sequence[bytes]) -> list[Key]:
        try:
            return parse(contents[0], self._allowed)
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from None


class UrlKeys:
    """A JWKS over HTTPS. What was fetched last stays in force while no newer can be had."""

    def __init__(self, url: str, allowed: frozenset[str]) -> None:
        """Fetches nothing yet, so that a server starts also where the issuer is away."""
        self._allowed = allowed
        self._client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=_FETCH_SECONDS)
        self._url = url
        self._keys: list[Key] = []
        self._lock = threading.Lock()
        self._tried = self._fetched = float("-inf")
        self.away = False

    @property
    def files(self) -> list[Watched[Any]]:
        return []

    def find(self, kid: str | None, algorithm: str) -> list[Key]:
        return matching(self._keys, kid, algorithm)

    def due(self, found: bool) -> bool:
        now = time.monotonic()
        stale = now - self._fetched > _FRESH_SECONDS
        return (stale or not found) and now - self._tried > _COOLDOWN_SECONDS

    def refresh(self) -> None:
        # Whoever comes while another one fetches waits for what that one gets.
        with self._lock:
            if time.monotonic() - self._tried <= _COOLDOWN_SECONDS:
                return
            try:
                keys = from_jwks(self._client.fetch_data(), self._allowed)
            # Whatever a server of others answers: what was fetched before stays in force.
            except Exception as error:
                self.away = True
                _log.warning("jwt_keys_not_fetched", url=self._url, fault=f"{type(error).__name__}: {error}")
            else:
                self._keys, self._fetched, self.away = keys, time.monotonic(), False
            finally:
                self._tried = time.monotonic()


def parse(data: bytes, allowed: frozenset[str]) -> list[Key]:
    """The keys of a file: a JWKS, public keys or certificates in PEM, or, where HS algorithms are allowed, a secret.
    ValueError: there is none that an allowed algorithm could use."""
    if allowed & _HMAC:
        return [_secret(data, allowed)]
    if data.lstrip()[:1] == b"{":
        try:
            return from_jwks(json.loads(data), allowed)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"not JSON: {error}") from None
    blocks = re.findall(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----", data, re.DOTALL)
    keys = [_from_pem(block, label) for block, label in zip(_pem_blocks(data), blocks, strict=True)]
    return _usable([Key(None, key, algorithms_of(key) & allowed) for key in keys], allowed)


def from_jwks(document: Any, allowed: frozenset[str]) -> list[Key]:
    """ValueError as for `parse`. Keys that are symmetric, not for signatures, or of no known kind are left out."""
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("expected a JWKS: an object with a list of keys")
    keys: list[Key] = []
    for one in document["keys"]:
        if not isinstance(one, dict) or one.get("kty") == "oct" or one.get("use", "sig") != "sig":
            continue
        try:
            material = jwt.PyJWK(one).key
            named = frozenset({one["alg"]} if "alg" in one else JWT_ALGORITHMS)
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        keys.append(Key(one.get("kid"), material, algorithms_of(material) & allowed & named))
    return _usable(keys, allowed)


def algorithms_of(key: object) -> frozenset[str]:
    """The algorithms of a public key's kind; none for private keys, short RSA keys and other kinds."""
    match key:
        case RSAPublicKey():
            return _RSA if key.key_size >= _LEAST_RSA_BITS else frozenset()
        case EllipticCurvePublicKey():
            return frozenset({_CURVES[key.curve.name]} if key.curve.name in _CURVES else ())
        case Ed25519PublicKey() | Ed448PublicKey():
            return frozenset({"EdDSA"})
    return frozenset()


def _usable(keys: Sequence[Key], allowed: frozenset[str]) -> list[Key]:
    usable = [key for key in keys if key.algorithms]
    if not usable:
        raise ValueError(
            f"expected a public key for one of {', '.join(sorted(allowed))} (RSA of at least {_LEAST_RSA_BITS} bits); "
            f"got {len(keys)} keys, none of which is"
        )
    return usable


def _secret(data: bytes, allowed: frozenset[str]) -> Key:
    secret = data.strip(b"\r\n")
    if b"-----BEGIN" in secret or secret.lstrip()[:1] == b"{":
        raise ValueError("expected a secret, since jwt_algorithms are HS ones; got PEM or JSON")
    if len(secret) < LEAST_SECRET_BYTES:
        raise ValueError(f"expected a secret of at least {LEAST_SECRET_BYTES} bytes; got {len(secret)}")
    return Key(None, secret, allowed & _HMAC)


def _pem_blocks(data: bytes) -> list[bytes]:
    return re.findall(rb"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----\n?", data, re.DOTALL)


def _from_pem(block: bytes, label: bytes) -> Any:
    if label == b"CERTIFICATE":
        return x509.load_pem_x509_certificate(block).public_key()
    if label == b"PUBLIC KEY":
        return load_pem_public_key(block)
    raise ValueError(f"expected public keys and certificates; got a block {label.decode()!r}")
