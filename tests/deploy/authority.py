"""Certificates of a server and of its callers, with the keys that Secrets of Kubernetes have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

import steelyard


class Authority:
    """One CA."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def secret(self, *names: str, days: int = 100) -> dict[str, bytes]:
        """A certificate for these names that ends in so many days, its key, and the CA."""
        issued = self._ca.issue_cert(*names, not_after=datetime.now(UTC) + timedelta(days=days))
        return {
            "ca.crt": self._ca.cert_pem.bytes(),
            "tls.crt": b"".join(blob.bytes() for blob in issued.cert_chain_pems),
            "tls.key": issued.private_key_pem.bytes(),
        }


def laid(folder: Path, secret: dict[str, bytes]) -> steelyard.Credentials:
    """Writes the files of a Secret; what a client shows by them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in secret.items():
        (folder / name).write_bytes(content)
    return steelyard.Credentials(ca=folder / "ca.crt", cert=folder / "tls.crt", key=folder / "tls.key")
