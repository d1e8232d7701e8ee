"""Real servers for tests: one inside the test's process, and one as a process that can be killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from steelyard.client import Client, connect
from steelyard.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from steelyard.local import local

# Bytes of what the server wrote that an error shows.
_TAIL = 4000


@contextlib.contextmanager
def server(directory: str | os.PathLike[str], **settings: Any) -> Iterator[Client]:
    """A server in this process on `directory`, with a client of it. Errors and settings are steelyard.local's."""
    with local(directory, **settings) as client:
        yield client


class ServerProcess:
    """`steelyard serve` as a process of its own, on a fixed port, so that it can be killed and started again.

    `directory` holds the server's data and what it writes to its standard error. `settings` are those of the server, as
    its flags name them (grace_seconds=5). Every wait ends after `timeout` seconds with an error that shows the last of
    what the server wrote. As a context manager it starts, and kills at the end.
    """

    def __init__(self, directory: str | os.PathLike[str], *, timeout: float = 60.0, **settings: Any) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._timeout = timeout
        self._log = self.directory / "server.log"
        self._port_file = self.directory / "port"
        self._port = _free_port()
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The process now running. FailedPrecondition: none is."""
        return self._running().pid

    def client(self, *, timeout: float = 30.0) -> Client:
        """A new client of this server; it stays good when the server is started again."""
        return connect(self.address, timeout=timeout)

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        if self._process is not None and self._process.poll() is None:
            raise FailedPrecondition(f"the server is running already, as process {self._process.pid}")
        self._port_file.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 -- this interpreter, and flags that the test wrote
                [sys.executable, "-m", "steelyard_server", "serve", *self._flags()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + self._timeout
        while not self._port_file.exists():
            status = self._process.poll()
            if status is not None:
                raise Unavailable(
                    f"the server ended with status {status} before it answered; {self._wrote()}"
                )
            if time.monotonic() > deadline:
                self.kill()
                raise DeadlineExceeded(
                    f"the server did not answer within {self._timeout:g} s; {self._wrote()}"
                )
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9, and the process is gone when this returns. Does nothing where none runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(self._timeout)

    def terminate(self) -> int:
        """SIGTERM, and waits for the drain. Returns the exit status."""
        process = self._running()
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(self._timeout)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise DeadlineExceeded(
                f"the server did not drain within {self._timeout:g} s; {self._wrote()}"
            ) from error

    def pause(self) -> None:
        """SIGSTOP: the server stands still, with its connections open, until resume()."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise FailedPrecondition(f"the server is not running; {self._wrote()}")
        return self._process

    def _flags(self) -> list[str]:
        flags = {
            "data_dir": self.directory / "data",
            "listen": self.address,
            "port_file": self._port_file,
            **self._settings,
        }
        return [text for name, value in flags.items() for text in (f"--{name.replace('_', '-')}", str(value))]

    def _wrote(self) -> str:
        try:
            text = self._log.read_bytes()[-_TAIL:].decode(errors="replace").strip()
        except OSError:
            text = ""
        return f"it wrote:\n{text}" if text else "it wrote nothing"


def _free_port() -> int:
    """A port that is free now, below those that systems give to connections.

    One of those could be taken while the server is down, also by a client's own attempt to reach it.
    """
    for port in random.sample(range(10_000, 32_000), 100):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise Unavailable("found no free port from 10000 to 31999 in 100 tries")
