"""What a run's own checkpoints do to its trainer: a step and its next while one is made, and without any."""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

from steelyard.testing import ServerProcess
from tests.benchmarks.lives import DRAW, written
from tests.benchmarks.measure import Options, Series, Table, in_turns, quantile
from tests.benchmarks.processes import Program

BATCH = 1024
PACE = 100.0
"""Steps a second."""
_PART = 1 << 20
_WAIT_SECONDS = 1200.0
_LOOK_SECONDS = 0.01
_SAVING_BYTES = 1 << 20
"""The run's steps write some 4 MB a second. Who writes so much within `_AROUND_SECONDS` is saving."""
_AROUND_SECONDS = 0.1
_NOTES = (
    (
        "two servers with the same run: one never saves it, the other once a second or whenever it is done, since its "
        "journal has grown by 1 MiB by then; both in the same turns"
    ),
    "while it saves: steps that began while the server wrote more than 1 MiB in 0.1 s, or 0.1 s before or after",
    "step: from next to the acknowledgement of its report; next: one batch is fetched ahead meanwhile",
)


@dataclass(slots=True)
class _Turn:
    """Seconds of the steps of one turn, and of their next; `share` of the time that was spent saving."""

    step: list[float] = field(default_factory=list)
    next: list[float] = field(default_factory=list)
    share: float = 1.0


def measure(options: Options) -> Iterator[Table]:
    sizes = [50_000] if options.quick else [1_000_000, 10_000_000]
    for size in [*sizes, 100_000_000] if options.large or options.huge else sizes:
        yield _table(options, size)


def _table(options: Options, size: int) -> Table:
    seconds = 2.0 if options.quick else 10.0
    found: dict[str, list[_Turn]] = {"without": [], "while it saves": []}
    with ExitStack() as stack:

        def server(name: str, journal_bytes: int) -> ServerProcess:
            made = ServerProcess(
                options.scratch / f"{name}-{size}",
                checkpoint_interval_seconds=1e6,
                checkpoint_journal_bytes=journal_bytes,
            )
            stack.enter_context(made)
            _fill(made, size)
            return made

        never, always = server("never", 1 << 40), server("always", 1 << 20)

        def turn(name: str, of: Callable[[], _Turn]) -> Callable[[], float]:
            def one() -> float:
                found[name].append(of())
                return 0.0

            return one

        cases = {
            "without": turn("without", lambda: _without(never, seconds)),
            "while it saves": turn("while it saves", lambda: _while_saving(always, seconds)),
        }
        in_turns(options.repeats, cases)
    told = {"ids": size, "batch": BATCH, "steps a second": PACE, "seconds a turn": seconds}
    return Table("saving: a step while its run is saved", _series(found), told, _NOTES)


def _series(found: dict[str, list[_Turn]]) -> list[Series]:
    series = []
    for what in ("next", "step"):
        for label, share in (("median", 0.5), ("p99", 0.99), ("worst", 1.0)):
            for name, turns in found.items():
                values = [1e3 * quantile(getattr(turn, what), share) for turn in turns]
                against = None if name == "without" else f"{what}, {label}, without"
                series.append(Series(f"{what}, {label}, {name}", "ms", values, against))
    shares = [100 * turn.share for turn in found["while it saves"]]
    steps = [float(len(turn.step)) for turn in found["while it saves"]]
    return [*series, Series("time spent saving", "%", shares), Series("steps while it saves", "", steps)]


def _fill(server: ServerProcess, size: int) -> None:
    """A run in which every example has a loss."""
    client = server.client(timeout=_WAIT_SECONDS)
    client.create_dataset("d", size)
    run = client.create_run("r", dataset="d", batch_size=BATCH, draw=DRAW)
    for first in range(0, size, _PART):
        ids = np.arange(first, min(first + _PART, size))
        run.observe(ids, np.random.default_rng([1, first]).lognormal(size=len(ids)).astype(np.float32))


def _steps(server: ServerProcess, seconds: float) -> tuple[list[float], _Turn]:
    """When each step began, and what it took."""
    arguments = ("--address", server.address, "--pace", PACE, "--runs", "r")
    with Program("paced", *arguments, life=4 * seconds + 120) as program:
        program.read()
        start = time.monotonic() + 0.2
        program.tell({"start": start, "stop": start + seconds})
        answer = program.read()
    if answer["errors"] or not answer["seconds"]:
        raise RuntimeError(f"expected steps, got {answer['errors'] or 'none'}")
    return answer["began"], _Turn(answer["seconds"], answer["next"])


def _without(server: ServerProcess, seconds: float) -> _Turn:
    return _steps(server, seconds)[1]


def _while_saving(server: ServerProcess, seconds: float) -> _Turn:
    with _saving(server.pid) as times:
        began, turn = _steps(server, seconds)
    kept = [at for at, when in enumerate(began) if _near(times, when)]
    if not kept:
        raise RuntimeError(f"expected the server to save its run within {seconds:g} s, it wrote too little")
    return _Turn([turn.step[at] for at in kept], [turn.next[at] for at in kept], len(kept) / len(began))


@contextmanager
def _saving(pid: int) -> Iterator[list[float]]:
    """The moments, ascending, at which the process had just written as much as only a checkpoint writes."""
    over, times, seen = threading.Event(), list[float](), list[tuple[float, int]]()

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            now, count = time.monotonic(), written(pid)
            seen.append((now, count))
            while seen[0][0] < now - _AROUND_SECONDS:
                seen.pop(0)
            if count - seen[0][1] > _SAVING_BYTES:
                times.append(now)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield times
    finally:
        over.set()
        thread.join(10)


def _near(times: list[float], when: float) -> bool:
    at = bisect.bisect_left(times, when - _AROUND_SECONDS)
    return at < len(times) and times[at] <= when + _AROUND_SECONDS
