"""A server inside this process: the same one as `steelyard serve`, for notebooks, tests and single-process training."""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING, Any

from steelyard.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from steelyard.client import Client
    from steelyard_server.server import Server


def local(directory: str | os.PathLike[str], **settings: Any) -> Client:
    """Starts a server on `directory` in this process, on a free port of 127.0.0.1, and returns a client of it.

    The server stops, in good order, when the client is closed or the interpreter exits. `settings` are those of the
    server (steelyard_server.config.Settings). Other processes of this machine can connect to the client's address; a
    pickled client is an ordinary one, which does not own the server.

    FailedPrecondition: the server's packages are not installed, or another server holds the directory, in this process
    or elsewhere. InvalidArgument: settings that are refused.
    """
    try:
        from steelyard_server.config import ConfigError, load
        from steelyard_server.server import Server
    except ImportError as error:
        raise FailedPrecondition(
            f"steelyard.local needs the server's packages ({error}); install them with: pip install 'steelyard[server]'"
        ) from error
    try:
        # The caller alone decides: no variable of the environment does.
        server = Server(load(dict(data_dir=directory, **{"listen": "127.0.0.1:0", **settings}), environ={}))
    except ConfigError as error:
        raise InvalidArgument(f"steelyard.local({os.fspath(directory)!r}): {error}") from error
    return _client_of(server, directory)


def _client_of(server: Server, directory: str | os.PathLike[str]) -> Client:
    """Starts the server and returns a client that owns it."""
    from steelyard import forking
    from steelyard.client import Client
    from steelyard_server.config import ConfigError
    from steelyard_server.history.errors import StoreError

    forking.claim("a server in this process")
    try:
        server.start()
    except ConfigError as error:
        raise InvalidArgument(f"steelyard.local({os.fspath(directory)!r}): {error}") from error
    except (StoreError, OSError) as error:
        raise FailedPrecondition(f"no server on {os.fspath(directory)!r}: {error}") from error
    forking.keep(server)
    client = Client(server.address)
    owner = os.getpid()

    def stop() -> None:
        atexit.unregister(stop)
        # A forked child inherits the client, and must not stop a server whose threads it does not have.
        if os.getpid() == owner:
            server.stop()

    atexit.register(stop)
    client._on_close = stop
    return client
