"""The server's side of TLS: certificate, key and client CA from files, read again when they change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from steelyard_server.config import ConfigError, Settings
from steelyard_server.log import logger
from steelyard_server.security.watched import Watched

_LOOK_SECONDS = 0.2
"""For which a handshake waits for its files: a look takes a thousandth of that, unless their file system hangs."""

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class _Set:
    configuration: grpc.ServerCertificateConfiguration
    expiries: dict[str, float]


class Tls:
    """The credentials of a listener. Every handshake uses what the files held when they were last right."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None, *, require_client: bool) -> None:
        """ConfigError: a file that cannot be read or is no PEM, a key that is not that of the certificate."""
        self._paths = [cert, key] + ([] if client_ca is None else [client_ca])
        try:
            self._files = Watched("tls", self._paths, self._load)
        except OSError as error:
            raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self._given = self._files.value
        # The stubs do not know that None means: as before.
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._given.configuration, cast("Any", self._fetch), require_client
        )

    @classmethod
    def of(cls, settings: Settings) -> Tls | None:
        """None where they name no certificate."""
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        required = settings.client_certs == "required"
        return cls(settings.tls_cert, settings.tls_key, settings.tls_client_ca, require_client=required)

    def certificate_expiries(self) -> dict[str, float]:
        """By file, the Unix time at which the first of its certificates in force expires."""
        return dict(self._files.value.expiries)

    @property
    def files(self) -> Watched[Any]:
        return self._files

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """For each handshake; None: as before. While it runs gRPC may serve nobody; it does not survive its raising."""
        try:
            found = self._files.soon(_LOOK_SECONDS)
            if found is self._given:
                return None
            self._given = found
        except Exception as error:
            _log.error("tls_not_reloaded", exc_info=error)
            return None
        return found.configuration

    def _load(self, contents: Sequence[bytes]) -> _Set:
        cert, key, *more = contents
        chain = _certificates(cert, self._paths[0])
        try:
            private = load_pem_private_key(key, None)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"expected an unencrypted private key in PEM in {self._paths[1]}: {error}"
            ) from None
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if private.public_key().public_bytes(*form) != chain[0].public_key().public_bytes(*form):
            raise ValueError(
                f"expected the key of the first certificate of {self._paths[0]}; {self._paths[1]} holds another one"
            )
        expiries = {str(self._paths[0]): _first_expiry(chain)}
        for path, data in zip(self._paths[2:], more, strict=True):
            expiries[str(path)] = _first_expiry(_certificates(data, path))
        return _Set(
            grpc.ssl_server_certificate_configuration([(key, cert)], more[0] if more else None), expiries
        )


def _certificates(data: bytes, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ValueError(f"expected certificates in PEM in {path}: {error}") from None


def _first_expiry(certificates: Sequence[x509.Certificate]) -> float:
    return min(one.not_valid_after_utc.timestamp() for one in certificates)
