"""Real servers in this process, on ports of their own, with real certificates; asked by plain gRPC channels."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from steelyard.v1 import datasets_pb2_grpc, events_pb2_grpc, runs_pb2_grpc, trainer_pb2_grpc
from steelyard_server.config import Settings
from steelyard_server.server import Server

from .issuer import AUDIENCE as AUDIENCE
from .issuer import Issuer


class Files:
    """Certificates and keys as files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.cert, self.key, self.client_ca = (folder / f"{name}.pem" for name in ("cert", "key", "clients"))
        self.issue_server()
        self.trust(self.ca)

    def issue_server(self, authority: trustme.CA | None = None, days: int | None = None) -> None:
        end = None
        if days is not None:
            end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        leaf = (authority or self.ca).issue_cert("localhost", "127.0.0.1", not_after=end)
        replace(self.key, leaf.private_key_pem.bytes())
        replace(self.cert, b"".join(pem.bytes() for pem in leaf.cert_chain_pems))

    def trust(self, *authorities: trustme.CA) -> None:
        replace(self.client_ca, b"".join(one.cert_pem.bytes() for one in authorities))

    def settings(self, *, clients: bool = False) -> dict[str, Any]:
        more = {"tls_client_ca": self.client_ca} if clients else {}
        return {"tls_cert": self.cert, "tls_key": self.key, **more}


@dataclass
class Leaf:
    """As trustme's, which makes none with a URI."""

    private_key_pem: trustme.Blob
    cert_chain_pems: list[trustme.Blob]


def spiffe(authority: trustme.CA, uri: str) -> Leaf:
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    signer: Any = load_pem_private_key(authority.private_key_pem.bytes(), None)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
        .sign(signer, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Leaf(trustme.Blob(private), [trustme.Blob(cert.public_bytes(Encoding.PEM))])


def replace(path: Path, data: bytes) -> None:
    """As those who rotate files do: never half written."""
    draft = path.with_suffix(".new")
    draft.write_bytes(data)
    draft.replace(path)


class Stubs:
    """The services over one channel, with a token where there is one."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.datasets = datasets_pb2_grpc.DatasetServiceStub(channel)
        self.runs = runs_pb2_grpc.RunServiceStub(channel)
        self.events = events_pb2_grpc.EventServiceStub(channel)
        self.trainers = trainer_pb2_grpc.TrainerServiceStub(channel)


def bearer(token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


@contextlib.contextmanager
def tls_channel(
    server: Server,
    ca: trustme.CA,
    leaf: trustme.LeafCert | Leaf | None = None,
    token: str | None = None,
    options: tuple[tuple[str, Any], ...] = (),
) -> Iterator[Stubs]:
    mine: tuple[bytes | None, bytes | None] = (None, None)
    if leaf is not None:
        mine = (leaf.private_key_pem.bytes(), b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes(), *mine)
    if token is not None:
        credentials = grpc.composite_channel_credentials(
            credentials, grpc.access_token_call_credentials(token)
        )
    # A pool of its own: connections of another test may have been made with other credentials.
    alone = (("grpc.use_local_subchannel_pool", 1), *options)
    with grpc.secure_channel(server.address, credentials, alone) as channel:
        yield Stubs(channel)


@contextlib.contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Server]:
    given = {"data_dir": folder, "listen": "127.0.0.1:0", "kernels": "numpy", **settings}
    server = Server(Settings(**given))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def refusal(ask: Any, *args: Any, **kwargs: Any) -> tuple[str, str]:
    """The status and text with which a call is refused."""
    kwargs.setdefault("timeout", 30)
    try:
        answer = ask(*args, **kwargs)
        if hasattr(answer, "__next__"):
            list(answer)
    except grpc.RpcError as error:
        told = cast("grpc.Call", error)
        return told.code().name, told.details() or ""
    raise AssertionError("expected a refusal; the call was answered")


@pytest.fixture(scope="session")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    folder = tmp_path / "tls"
    folder.mkdir()
    return Files(folder)
