"""`steelyard serve` as a process that can be killed, starved and wrapped in what injects faults."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.robustness.faults.registry import Broken

START_SECONDS = 120.0
END_SECONDS = 90.0
_TAIL = 3000


class Daemon:
    """One server on a fixed port. `before` is put in front of its command line, `environment` is added to its own."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data, self.log = Path(settings.get("data_dir", folder / "data")), folder / "server.log"
        self._port_file = folder / "port"
        self.address = f"127.0.0.1:{free_port()}"
        self.settings: dict[str, Any] = {
            "data_dir": self.data,
            "listen": self.address,
            "port_file": self._port_file,
            **settings,
        }
        self.before: Sequence[str] = ()
        self.environment: Mapping[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that was started; where something is put before the server, of that."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> None:
        """Starts it and does not wait."""
        assert not self.alive
        self._port_file.unlink(missing_ok=True)
        flags = [
            text
            for name, value in self.settings.items()
            for text in (f"--{name.replace('_', '-')}", str(value))
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.before, sys.executable, "-m", "steelyard_server", "serve", *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )

    def start(self) -> float:
        """Starts it, and the seconds until it answered. Broken where it does not."""
        began = time.monotonic()
        self.spawn()
        while not self._port_file.exists():
            if not self.alive:
                raise Broken(f"the server ended with status {self.status} before it answered\n{self.words()}")
            if time.monotonic() > began + START_SECONDS:
                raise Broken(f"the server does not answer within {START_SECONDS:g} s\n{self.words()}")
            time.sleep(0.005)
        return time.monotonic() - began

    @property
    def status(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def wait(self, seconds: float = END_SECONDS) -> int:
        """The exit status of a server that ends. Broken where it does not."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Broken(f"the server has not ended within {seconds:g} s\n{self.words()}") from None

    def kill(self) -> None:
        """kill -9, and it is gone. Broken where it had ended by itself."""
        assert self._process is not None
        self._process.kill()
        status = self._process.wait(END_SECONDS)
        if status != -signal.SIGKILL:
            raise Broken(f"the server ended by itself with status {status}\n{self.words()}")

    def figure(self, name: str, **labels: str) -> float:
        """The sum of what its metrics say by that name with these labels. It must have been told to serve `http`."""
        with urllib.request.urlopen(f"http://{self.settings['http']}/metrics", timeout=END_SECONDS) as answer:
            text = answer.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def terminate(self) -> float:
        """SIGTERM, and the seconds until it had drained. Broken where that did not end with status 0."""
        began = time.monotonic()
        self.send(signal.SIGTERM)
        status = self.wait()
        if status != 0:
            raise Broken(f"a server that was asked to drain ended with status {status}\n{self.words()}")
        return time.monotonic() - began

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(END_SECONDS)

    def words(self) -> str:
        """What it wrote last."""
        try:
            return self.log.read_bytes()[-_TAIL:].decode(errors="replace").strip()
        except OSError:
            return "(it wrote nothing)"


def free_port() -> int:
    """One below those that systems give to connections, which could be taken while the server is down."""
    for port in random.sample(range(10_000, 32_000), 100):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Broken("found no free port from 10000 to 31999 in 100 tries")
