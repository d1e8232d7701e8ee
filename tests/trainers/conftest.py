"""A server that can be killed, and trainers that are programs of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steelyard.testing import ServerProcess

PROGRAMS = Path(__file__).parent / "programs"
IGNORED = (
    # What Python says from 3.12 on about every fork of a process with threads. A loader's workers use none of ours.
    "ignore:This process .* is multi-threaded:DeprecationWarning",
    # torchdata asks torch for something of old.
    "ignore:'set_vital' is deprecated:UserWarning",
    # The number of workers is the point of a test, not the machine's speed.
    "ignore:This DataLoader will create:UserWarning",
)
# A job of a few processes with their imports, on a busy machine.
DEADLINE = 100.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/trainers/" in item.path.as_posix():
            item.add_marker(pytest.mark.filterwarnings(*IGNORED))


class Program:
    """A Python program as a process; its output is shown where it ends otherwise than expected."""

    def __init__(self, log: Path, *arguments: object, **environment: str) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        """kill -9, and it is gone on return."""
        self._process.kill()
        self._process.wait(30)

    def expect(self, status: int = 0, seconds: float = DEADLINE) -> None:
        """Waits for the end with this status."""
        try:
            came: int | str = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            came = f"none within {seconds} s"
        assert came == status, (
            f"expected exit status {status}, got {came}; it wrote:\n{self.output()[-6000:]}"
        )

    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts programs/NAME with arguments, or any module with "-m"; what still runs at the end is killed."""
    started: list[Program] = []

    def begin(name: str, *arguments: object, **environment: str) -> Program:
        where = (name,) if name.startswith("-") else (str(PROGRAMS / name),)
        started.append(Program(tmp_path / f"program-{len(started)}.log", *where, *arguments, **environment))
        return started[-1]

    yield begin
    for one in started:
        one.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of the module's own, that its tests may kill and start again."""
    with ServerProcess(tmp_path_factory.mktemp("server"), log_level="warning") as process:
        yield process


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    """Asks a question until its answer is true, and returns the answer."""

    def ask(question: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
        deadline = time.monotonic() + seconds
        while not (answer := question()):
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
            time.sleep(0.02)
        return answer

    return ask
