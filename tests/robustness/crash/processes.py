"""The processes of a round: one server, and the trainers of each attempt. Every wait has a deadline that explains."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.robustness.crash.nursery import Child, Nursery

START_SECONDS = 60.0
END_SECONDS = 90.0
_POLL_SECONDS = 0.01
_TAIL_BYTES = 6000


class CrashFailure(Exception):  # noqa: N818 -- what the crash test is for
    """Something was promised and did not hold. The message says what, and shows what the processes last wrote."""


def await_that(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """Polls until the condition holds. CrashFailure with what() where it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise CrashFailure(f"after {seconds:g} s {what()}")
        time.sleep(_POLL_SECONDS)


def tail_of(path: Path) -> str:
    try:
        text = path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
    except OSError:
        text = ""
    return f"--- {path}\n{text or '(nothing)'}"


def _dump_stacks(process: Child) -> None:
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGUSR1)


class Server:
    """`steelyard serve` on a fixed port, in the program that can be told where to die. `killed` counts its deaths."""

    def __init__(self, nursery: Nursery, folder: Path, settings: Mapping[str, Any], fault: str) -> None:
        folder.mkdir(parents=True)
        self._nursery = nursery
        self.log = folder / "server.log"
        self.killed = 0
        self._arm, self._port_file = folder / "arm", folder / "port"
        self.address = f"127.0.0.1:{_free_port()}"
        flags = {
            "data_dir": folder / "data",
            "listen": self.address,
            "port_file": self._port_file,
            **settings,
        }
        self._arguments = [
            *(str(self._arm), fault, "serve"),
            *(text for name, value in flags.items() for text in (f"--{name.replace('_', '-')}", str(value))),
        ]
        self._process: Child | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> None:
        """Starts it and does not wait."""
        assert not self.alive
        self._port_file.unlink(missing_ok=True)
        self._process = self._nursery.bear("served", self._arguments, self.log)

    def await_answer(self) -> bool:
        """Waits until it answers; False where it died first, of the trap that was set."""
        await_that(
            lambda: self._port_file.exists() or not self.alive,
            START_SECONDS,
            lambda: f"the server does not answer; {self.last_words()}",
        )
        if not self.alive:
            self._check_killed()
        return self.alive

    def start(self) -> None:
        self.spawn()
        if not self.await_answer():
            raise CrashFailure(f"the server was killed while it started, by nobody; {self.last_words()}")

    def kill(self) -> None:
        """kill -9. It may have died in its trap already."""
        assert self._process is not None
        self._process.kill()
        self._check_killed()

    def _check_killed(self) -> None:
        assert self._process is not None
        status = self._process.wait(END_SECONDS)
        self._arm.unlink(missing_ok=True)
        if status != -signal.SIGKILL:
            raise CrashFailure(f"the server ended by itself with status {status}; {self.last_words()}")
        self.killed += 1

    def arm(self, point: str, nth: int) -> None:
        """Sets the trap: the server dies when it comes to `point` for the nth time from now on."""
        new = self._arm.with_suffix(".new")
        new.write_text(f"{point} {nth}")
        new.replace(self._arm)

    def disarm(self) -> None:
        self._arm.unlink(missing_ok=True)

    def await_death(self, seconds: float) -> bool:
        """Waits for the trap to spring. False where the place was not passed."""
        deadline = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        self._check_killed()
        return True

    def drain(self) -> None:
        """SIGTERM; it must end with status 0."""
        assert self._process is not None
        self._process.terminate()
        try:
            status = self._process.wait(END_SECONDS)
        except TimeoutError:
            raise CrashFailure(
                f"the server does not drain within {END_SECONDS:g} s; {self.last_words()}"
            ) from None
        if status != 0:
            raise CrashFailure(f"expected status 0 of a drained server, got {status}; {self.last_words()}")

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def last_words(self) -> str:
        """Stacks, where it lives, and the end of its log."""
        if self._process is not None and self.alive:
            _dump_stacks(self._process)
            time.sleep(0.5)
        return tail_of(self.log)

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(END_SECONDS)


@dataclass(slots=True)
class Job:
    """One attempt: a process for each rank. `worlds` are the world sizes of the runs by name."""

    attempt: int
    folder: Path
    worlds: Mapping[str, int]
    starts: Mapping[str, int]
    processes: dict[int, Child] = field(default_factory=dict)
    counted: Counter[str] = field(default_factory=Counter)
    """Lines that the trainers have written, by their kind."""
    ends: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict)
    """How each run ended at each rank, and the message."""
    joined: dict[str, set[int]] = field(default_factory=dict)
    killed: int = 0
    _read: dict[int, int] = field(default_factory=dict)

    @property
    def ranks(self) -> range:
        return range(max(self.worlds.values()))

    @property
    def log(self) -> Path:
        return self.folder / "trainers.log"

    def describe(self, address: str, seed: str, reads_losses: Mapping[str, bool], pace: float) -> None:
        """Writes what its trainers need to know."""
        self.folder.mkdir(parents=True)
        runs = {
            name: {"world": world, "start": self.starts[name], "reads_losses": reads_losses[name]}
            for name, world in self.worlds.items()
        }
        job = {
            "folder": str(self.folder),
            "address": address,
            "attempt": self.attempt,
            "seed": seed,
            "pace": pace,
            "runs": runs,
        }
        (self.folder / "job").write_text(json.dumps(job))

    def stop_at(self, stop: Mapping[str, int]) -> None:
        (self.folder / "stop").write_text(json.dumps(stop))

    def launch(self, nursery: Nursery, rank: int) -> None:
        self.processes[rank] = nursery.bear("trainer", [str(self.folder / "job"), str(rank)], self.log)

    def kill(self, rank: int) -> None:
        process = self.processes[rank]
        process.kill()
        self.killed += process.wait(END_SECONDS) == -signal.SIGKILL

    def signal(self, number: int, rank: int | None = None) -> None:
        for one in self.ranks if rank is None else (rank,):
            self.processes[one].send_signal(number)

    @property
    def over(self) -> bool:
        return all(process.poll() is not None for process in self.processes.values())

    def checkpoint(self, run: str) -> int:
        """The step that rank 0 saved last: every rank's reports of the steps below are acknowledged."""
        path = self.folder / f"checkpoint.{run}"
        return int(path.read_text()) if path.exists() else self.starts[run]

    def listen(self) -> None:
        """Reads what the trainers have said since the last time."""
        for rank in self.ranks:
            path = self.folder / f"rank.{rank}"
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._read.get(rank, 0))
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[rank] = self._read.get(rank, 0) + len(whole)
            for line in whole.splitlines():
                self._heard(rank, line)

    def _heard(self, rank: int, line: bytes) -> None:
        kind = line[2 : line.index(b'"', 2)].decode()
        self.counted[kind] += 1
        if kind == "joined":
            self.joined.setdefault(json.loads(line)[1], set()).add(rank)
        elif kind == "end":
            _, run, how, message = json.loads(line)
            self.ends[run, rank] = how, message

    @property
    def everyone_joined(self) -> bool:
        return all(len(self.joined.get(name, ())) == world for name, world in self.worlds.items())

    def last_words(self) -> str:
        for process in self.processes.values():
            if process.poll() is None:
                _dump_stacks(process)
        time.sleep(0.5)
        return tail_of(self.log)

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(END_SECONDS)


def _free_port() -> int:
    """A port below those that systems give to connections, which could be taken while the server is down."""
    for port in random.sample(range(10_000, 32_000), 100):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise CrashFailure("found no free port from 10000 to 31999 in 100 tries")
