"""By what a client trusts its server, and by what the server knows the client."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steelyard.errors import InvalidArgument

_VARIABLES = {
    "ca": "STEELYARD_CA",
    "cert": "STEELYARD_CERT",
    "key": "STEELYARD_KEY",
    "token_file": "STEELYARD_TOKEN_FILE",
    "server_name": "STEELYARD_SERVER_NAME",
}
Path_ = str | os.PathLike[str]

Stamp = tuple[tuple[int, int, int] | None, ...]
"""Of each file its inode, modification time (ns) and size; None where it cannot be looked at."""


@dataclass(frozen=True)
class Credentials:
    """TLS files and a token. Picklable: paths travel, and are read where they are used; a token that is given literally
    travels too.

    `ca`: PEM file of the authorities that the server's certificate is believed by; those of the system where it is not
    given. `cert`, `key`: PEM files of the certificate that this client shows, and its key. Any of them means TLS, and
    so does `tls=True`. `server_name`: the name that the server's certificate must have, where it is not the
    address's. `token` or `token_file`: a bearer token; never sent over TCP without TLS.

    Files may change at any time: new connections are made by what is in them, and the token is read again.
    InvalidArgument: what does not go together.
    """

    ca: Path_ | None = None
    cert: Path_ | None = None
    key: Path_ | None = None
    token: str | None = field(default=None, repr=False)
    token_file: Path_ | None = None
    server_name: str | None = None
    tls: bool = False

    def __post_init__(self) -> None:
        for name in ("ca", "cert", "key", "token_file"):
            _set(self, name, _path(name, getattr(self, name)))
        for name in ("token", "server_name"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                shown = "another" if name == "token" else repr(value)
                raise InvalidArgument(
                    f"credentials: {name}: expected a string that is not empty, got {shown}"
                )
        if not isinstance(self.tls, bool):
            raise InvalidArgument(f"credentials: tls: expected True or False, got {self.tls!r}")
        if (self.cert is None) != (self.key is None):
            given, lacking = ("cert", "key") if self.key is None else ("key", "cert")
            raise InvalidArgument(
                f"credentials: cert and key go together: expected both or neither, got {given} without {lacking}"
            )
        if self.token is not None and self.token_file is not None:
            raise InvalidArgument("credentials: expected one of token and token_file, got both")

    @property
    def secure(self) -> bool:
        """Whether the connection is TLS."""
        return self.tls or self.ca is not None or self.cert is not None

    @property
    def has_token(self) -> bool:
        return self.token is not None or self.token_file is not None

    def checked(self, address: str) -> Credentials:
        """The same. InvalidArgument where this server cannot be spoken to by them."""
        local = address.startswith("unix:")
        if local and self.secure:
            raise InvalidArgument(
                f"credentials: {address} is a socket of this machine, which speaks no TLS: expected no ca, cert, key "
                "and tls there"
            )
        if self.has_token and not self.secure and not local:
            which = "token" if self.token is not None else "token_file"
            raise InvalidArgument(
                f"credentials: {which} without TLS: a token is never sent over plaintext TCP, where everyone on the "
                f"way to {address} could read it. Give ca (or tls=True, for the authorities of the system), or "
                "connect by unix:PATH"
            )
        if self.server_name is not None and not self.secure:
            raise InvalidArgument(
                "credentials: server_name without TLS: there is no certificate that could have the name; expected ca "
                "or tls=True"
            )
        return self

    def stamp(self) -> Stamp:
        """What the TLS files look like from outside: differs where one of them was changed."""
        return tuple(_stamp(path) for path in (self.ca, self.cert, self.key) if path is not None)


def resolve(
    credentials: Credentials | None, address: str, environ: Mapping[str, str] | None = None
) -> Credentials | None:
    """What was given, and from STEELYARD_CA, _CERT, _KEY, _TOKEN_FILE and _SERVER_NAME what was not; None where there
    is neither. The variables of TLS do not concern unix:PATH. InvalidArgument as Credentials.checked."""
    if credentials is not None and not isinstance(credentials, Credentials):
        raise InvalidArgument(
            f"credentials: expected steelyard.Credentials(...), got {type(credentials).__name__}"
        )
    environ = os.environ if environ is None else environ
    given = credentials or Credentials()
    found: dict[str, Any] = {
        name: environ[variable] for name, variable in _VARIABLES.items() if environ.get(variable)
    }
    if address.startswith("unix:"):
        found = {name: value for name, value in found.items() if name == "token_file"}
    if given.token is not None:
        found.pop("token_file", None)
    if given.cert is not None:  # a pair stays a pair
        found.pop("cert", None)
        found.pop("key", None)
    found = {name: value for name, value in found.items() if getattr(given, name) is None}
    try:
        whole = replace(given, **found).checked(address) if found else given.checked(address)
    except InvalidArgument as error:
        if not found:
            raise
        whence = ", ".join(f"{name} from {_VARIABLES[name]}" for name in sorted(found))
        raise InvalidArgument(f"{error} ({whence})") from None
    return None if whole == Credentials() else whole


def _set(one: Credentials, name: str, value: object) -> None:
    object.__setattr__(one, name, value)


def _path(name: str, value: object) -> str | None:
    if value is None:
        return None
    try:
        path = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        path = None
    if not isinstance(path, str) or not path:
        raise InvalidArgument(f"credentials: {name}: expected a path, got {type(value).__name__}")
    # Whoever unpickles it may stand in another folder.
    return str(Path(path).expanduser().absolute())


def _stamp(path: Path_) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 -- follows the links by which a mounted secret is swapped
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
