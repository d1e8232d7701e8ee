"""A server that can be killed, and trainers that are programs of their own."""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steelyard.testing import ServerProcess

PROGRAMS = Path(__file__).parent / "programs"
sys.path.append(str(PROGRAMS))  # where the process that is forked finds what it begins with
import begin_rank  # type: ignore[import-not-found] # noqa: E402

_PROCESSES = multiprocessing.get_context("forkserver")
# Where another test has started the fork server, without these, processes import for themselves.
_PROCESSES.set_forkserver_preload(["torch", "torch.distributed", "torch.utils.data", "steelyard.torch"])
IGNORED = (
    # What Python says from 3.12 on about every fork of a process with threads. A loader's workers use none of ours.
    "ignore:This process .* is multi-threaded:DeprecationWarning",
    # torchdata asks torch for something of old.
    "ignore:'set_vital' is deprecated:UserWarning",
    # The number of workers is the point of a test, not the machine's speed.
    "ignore:This DataLoader will create:UserWarning",
)
# A job of a few processes with their imports, on a busy machine.
DEADLINE = 200.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/trainers/" in item.path.as_posix():
            item.add_marker(pytest.mark.filterwarnings(*IGNORED))


class Program:
    """A program of programs/ as a process; what it wrote is shown where it ends otherwise than expected."""

    def __init__(
        self, name: str, log: Path, arguments: tuple[object, ...], environment: dict[str, str]
    ) -> None:
        self._log = log
        texts = [str(one) for one in arguments]
        self._process = _PROCESSES.Process(
            target=begin_rank.begin,
            args=(str(PROGRAMS / name), texts, {"OMP_NUM_THREADS": "1", **environment}, str(log)),
        )
        self._process.start()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """kill -9, and it is gone on return."""
        self._process.kill()
        self._process.join(30)

    def expect(self, status: int, seconds: float = DEADLINE) -> None:
        """Waits for the end with this status, negative for a signal."""
        self._process.join(seconds)
        came = f"none within {seconds} s" if self.running else self._process.exitcode
        assert came == status, f"expected exit status {status}, got {came}; it wrote:\n{self._written()}"

    def _written(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-6000:] if self._log.exists() else ""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts programs/NAME with arguments and environment; what still runs at the end is killed."""
    started: list[Program] = []

    def begin(name: str, *arguments: object, **environment: str) -> Program:
        started.append(Program(name, tmp_path / f"{len(started)}.log", arguments, environment))
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
