"""A network of its own for a server: one cable to this machine, on which packets can be dropped, refused and slowed.

    with Namespace() as away:
        process = subprocess.Popen([*away.prefix, ..., "--listen", f"{away.host}:7077"])
        with away.dropping(): ...                   # a black hole: nothing arrives, nobody is told
        with away.dropping(share=0.1): ...          # one packet in ten
        with away.refusing(7077): ...               # RST for whatever comes
        away.rate("1mbit")                          # of what the server sends

Needs root, iproute2 and iptables; `why_not` says what is missing. Everything is gone with the namespace, also where
the process that made it was killed and `sweep` is called by the next.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_SECONDS = 20.0
_PREFIX = "steelyard-"


@functools.cache
def why_not() -> str | None:
    """Why there can be no namespace here; None where there can."""
    missing = [tool for tool in ("ip", "iptables", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found: apt-get install iproute2 iptables"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with Namespace() as trial, trial.dropping():
            pass
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"
    return None


class Namespace:
    """One per process: its name and addresses follow from the process id."""

    def __init__(self) -> None:
        number = os.getpid()
        self.name = f"{_PREFIX}{number}"
        self._cable = f"sy{number}", f"yd{number}"
        # A /30 of 10.128.0.0/9 by the process id.
        base = (number % (1 << 21)) << 2
        high, middle, low = 128 | base >> 16, base >> 8 & 255, base & 255
        self._here, self.host = (f"10.{high}.{middle}.{low + last}" for last in (1, 2))
        self.prefix = ["ip", "netns", "exec", self.name]

    def __enter__(self) -> Namespace:
        sweep()
        here, there = self._cable
        try:
            _run("ip", "netns", "add", self.name)
            _run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", self.name)
            _run("ip", "addr", "add", f"{self._here}/30", "dev", here)
            _run("ip", "link", "set", here, "up")
            _run("ip", "-n", self.name, "addr", "add", f"{self.host}/30", "dev", there)
            _run("ip", "-n", self.name, "link", "set", there, "up")
            _run("ip", "-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # The cable goes first: a process that is left in the namespace would keep both.
        subprocess.run(["ip", "link", "del", self._cable[0]], capture_output=True, timeout=_SECONDS)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, timeout=_SECONDS)

    @contextlib.contextmanager
    def dropping(self, share: float = 1.0) -> Iterator[None]:
        """That share of the packets that come, and of those that go, is lost."""
        chance = [] if share == 1.0 else ["-m", "statistic", "--mode", "random", "--probability", str(share)]
        with self._rule("INPUT", *chance, "-j", "DROP"), self._rule("OUTPUT", *chance, "-j", "DROP"):
            yield

    @contextlib.contextmanager
    def refusing(self, port: int) -> Iterator[None]:
        """Whatever comes to the port is answered with RST: connections break, new ones are refused."""
        with self._rule(
            "INPUT", "-p", "tcp", "--dport", str(port), "-j", "REJECT", "--reject-with", "tcp-reset"
        ):
            yield

    def rate(self, rate: str) -> None:
        """What leaves the namespace is held to that rate ("1mbit"), behind a queue of 400 ms."""
        cable = self._cable[1]
        self._inside("tc", "qdisc", "replace", "dev", cable, "root", "tbf", *_tbf(rate))

    def full_rate(self) -> None:
        self._inside("tc", "qdisc", "del", "dev", self._cable[1], "root")

    @contextlib.contextmanager
    def _rule(self, chain: str, *rule: str) -> Iterator[None]:
        self._inside("iptables", "-w", "-I", chain, *rule)
        try:
            yield
        finally:
            self._inside("iptables", "-w", "-D", chain, *rule)

    def _inside(self, *command: str) -> None:
        _run(*self.prefix, *command)


def sweep() -> None:
    """Removes what processes that were killed have left."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, timeout=_SECONDS).stdout
    for line in listed.splitlines():
        name = line.split()[0]
        number = name.removeprefix(_PREFIX)
        if name != number and number.isdecimal() and not Path("/proc", number).exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=_SECONDS)


def _tbf(rate: str) -> list[str]:
    return ["rate", rate, "burst", "16kb", "latency", "400ms"]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
