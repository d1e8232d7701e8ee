"""TLS as gRPC wants it: files made into channel credentials, and failed handshakes told in words."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import grpc

from steelyard.credentials import Credentials
from steelyard.errors import InvalidArgument

# What never left this process begins so: whatever was asked for may be asked for again.
NOT_CONNECTED = "failed to connect to all addresses"
UNTOLD = "metadata from plugin failed"
"""gRPC's words for a call that was not made, because its token could not be read."""
UNSENT = (NOT_CONNECTED, UNTOLD, "DNS resolution failed", "errors resolving ")
"""In gRPC's words for a call that did not leave this process."""
_PROBE_SECONDS = 1.0


def channel_credentials(credentials: Credentials | None, address: str) -> grpc.ChannelCredentials | None:
    """What a channel is made with; None for plaintext. Reads the files. InvalidArgument names one that is no good."""
    if credentials is None or not (credentials.secure or credentials.has_token):
        return None
    if credentials.secure:
        channel = _tls(credentials)
    else:
        channel = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
    if not credentials.has_token:
        return channel
    token = grpc.metadata_call_credentials(_Token(credentials), name="steelyard token")
    return grpc.composite_channel_credentials(channel, token)


def explained(text: str, credentials: Credentials | None, address: str) -> str | None:
    """What a failed handshake means, from gRPC's words for it; None where they tell of none."""
    if not text.startswith(NOT_CONNECTED) or "onnection refused" in text:
        return None
    if credentials is None or not credentials.secure:
        if ("Socket closed" in text or "onnection reset" in text) and speaks_tls(address):
            return (
                f"{address} speaks TLS, and this client was given no credentials (steelyard.Credentials, "
                "STEELYARD_CA)"
            )
        return None
    name = credentials.server_name or address.rpartition(":")[0].strip("[]")
    ca = credentials.ca or "the authorities of the system"
    certificate = f"the certificate of the server at {address}"
    if "certificate has expired" in text:
        return f"{certificate} has expired (or that of an authority in {ca})"
    if "certificate is not yet valid" in text:
        return f"{certificate} is not valid yet; one of the two clocks may be wrong"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"{certificate} is not signed by {ca} ({_reason(text)}): expected the authority that signed it"
    if "Hostname Verification" in text:
        return (
            f"{certificate} does not have the name {name!r}: connect by a name that it has, or give server_name, "
            "one of its names"
        )
    if "WRONG_VERSION_NUMBER" in text:
        return f"{address} does not speak TLS: a server without TLS, or another service"
    if "security handshaker" in text:
        return f"TLS cannot be begun with the files of {credentials!r}"
    if "Socket closed" in text or "onnection reset" in text:
        # TLS 1.3: the client is done before the server has judged its certificate, and gRPC does not pass on why.
        shown = (
            f"the certificate in {credentials.cert}, which may have expired or be of an authority that it does not know"
            if credentials.cert
            else "no certificate: expected cert and key where the server wants them"
        )
        return (
            f"the server at {address} ended the TLS handshake. It was shown {shown}; started with "
            "GRPC_VERBOSITY=INFO, it logs the reason"
        )
    if "handshake failed" in text.lower():
        return f"no TLS with {address}: {_reason(text)}"
    return None


def speaks_tls(address: str) -> bool:
    """Whether what listens there answers the begin of a TLS handshake as such. Else a proxy whose server is not there
    yet, which takes connections and closes them, would be taken for one."""
    import ssl  # here: who is answered needs none of it

    if address.startswith("unix:"):
        return False
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is told or believed
    hello = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _PROBE_SECONDS) as asked:
            asked.settimeout(_PROBE_SECONDS)
            asked.sendall(hello.read())
            answer = asked.recv(3)
    except (OSError, ValueError):
        return False
    # A record of TLS: an alert or a handshake, and the major version.
    return answer[:1] in (b"\x15", b"\x16") and answer[1:2] == b"\x03"


def _tls(credentials: Credentials) -> grpc.ChannelCredentials:
    import ssl  # here: who speaks plaintext needs none of it

    ca = _read("ca", credentials.ca)
    certificate, key = _read("cert", credentials.cert), _read("key", credentials.key)
    # gRPC takes any bytes and fails later, saying nothing of the file; OpenSSL looks at them now.
    if ca is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise InvalidArgument(
                f"credentials: ca: expected certificates in PEM form in {credentials.ca}, got none that can be read "
                f"({_openssl(error)})"
            ) from None
    if credentials.cert is not None and credentials.key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
                credentials.cert, credentials.key, password=_refuse_password
            )
        except (ssl.SSLError, ValueError) as error:
            raise InvalidArgument(
                f"credentials: cert and key: expected a certificate in PEM form in {credentials.cert} and its key, "
                f"without a password, in {credentials.key}; they do not go together or are neither ({_openssl(error)})"
            ) from None
        except OSError as error:
            raise _unreadable("cert", credentials.cert, error) from None
    return grpc.ssl_channel_credentials(ca, key, certificate)


class _Token(grpc.AuthMetadataPlugin):
    """Adds the token to each call. Reads the file for each: it is small, and a renewed token counts at once."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        # Called on a thread of gRPC's; what it raised there would be lost.
        try:
            callback((("authorization", f"Bearer {token_of(self._credentials)}"),), None)
        except InvalidArgument as error:
            callback((), error)


def token_of(credentials: Credentials) -> str:
    """The token as it is now. InvalidArgument: its file cannot be read, or holds no token."""
    if credentials.token is not None:
        token, whence = credentials.token.strip(), "token"
    else:
        whence = f"token_file {credentials.token_file}"
        try:
            content = _read("token_file", credentials.token_file) or b""
        except InvalidArgument as error:
            raise InvalidArgument(f"{error}; expected one line with a token") from None
        token = content.decode("ascii", "replace").strip()
    # Anything else could not travel in a header, and gRPC's message would show it.
    if not token or not all("!" <= letter <= "~" for letter in token):
        raise InvalidArgument(f"credentials: {whence}: expected one token of visible ASCII characters")
    return token


def check_token(credentials: Credentials | None) -> None:
    """InvalidArgument where a call could show no token: before it is made, because gRPC takes what fails there for a
    fault of the connection."""
    if credentials is not None and credentials.has_token:
        token_of(credentials)


def _read(name: str, path: object) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(str(path)).read_bytes()
    except OSError as error:
        raise _unreadable(name, path, error) from None


def _unreadable(name: str, path: object, error: OSError) -> InvalidArgument:
    return InvalidArgument(f"credentials: {name}: cannot read {path}: {error.strerror or error}")


def _refuse_password() -> str:
    raise ValueError("the key has a password")


def _openssl(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else str(error)


def _reason(text: str) -> str:
    """gRPC's last words of a handshake: "unable to get local issuer certificate"."""
    return text.removesuffix(": OK").rpartition(": ")[2]
