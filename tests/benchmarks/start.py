"""How long it takes until something answers: imports and the daemon, each in fresh processes."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from steelyard.testing import ServerProcess
from tests.benchmarks.measure import Options, Series, Table, in_turns

_PROGRAMS = {
    "python": "pass",
    "import grpc, numpy": "import grpc, numpy",
    "import steelyard": "import steelyard",
    "import steelyard, and connect": "import steelyard; steelyard.connect('127.0.0.1:1')",
    "import the server": "import steelyard_server.server",
}


def measure(options: Options) -> Iterator[Table]:
    numbers = itertools.count()

    def program(text: str) -> Callable[[], float]:
        def one() -> float:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", text], check=True, timeout=60)
            return time.perf_counter() - start

        return one

    def first_answer() -> float:
        directory = options.scratch / f"start-{next(numbers)}"
        start = time.perf_counter()
        with ServerProcess(directory) as server:
            server.client().list_runs()
            return time.perf_counter() - start

    cases = {name: program(text) for name, text in _PROGRAMS.items()}
    cases["steelyard serve, to its first answer"] = first_answer
    found = in_turns(options.repeats, cases)
    series = [Series(name, "s", values) for name, values in found.items()]
    yield Table("start: seconds of a fresh process", series)
