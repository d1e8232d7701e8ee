"""Whether the runs of one server slow each other: the steps of one paced run, alone and beside others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import steelyard
from steelyard.testing import ServerProcess
from tests.benchmarks import own_kernels
from tests.benchmarks.measure import Options, Series, Table, in_turns, quantile
from tests.benchmarks.processes import Program

BATCH = 256
PACE = 100.0
"""Steps a second."""
DRAW = {"method": "scored", "score": "last_loss", "transform": "power", "alpha": 1.0, "floor": 0.05}
_OTHER_PACE = 10.0
_BIG_BATCH, _BIG_PACE = 4096, 10.0
_SAVE_JOURNAL_BYTES = 8 << 20
"""Of the big run's journal, 12.8 s: then it saves most of what it keeps, 0.7 GB at 1e7 ids. The paced run does not."""


def measure(options: Options) -> Iterator[Table]:
    """One server for all, but for the loaded runs that do nothing: those have one of their own, started each turn."""
    sizes = {
        "ids": 10_000 if options.quick else 100_000,
        "ids of the big run": 200_000 if options.quick else 10_000_000,
        "idle runs": 5 if options.quick else 100,
        "other runs": 2 if options.quick else 8,
    }
    settings = {
        "checkpoint_interval_seconds": 1e6,
        "checkpoint_journal_bytes": _SAVE_JOURNAL_BYTES >> (3 if options.quick else 0),
    }
    with ServerProcess(options.scratch / "busy", **settings) as busy:
        idle = ServerProcess(options.scratch / "idle", **settings)
        others = _fill(busy.client(timeout=60), sizes)
        _fill_idle(idle, sizes)
        cases = {
            "alone": lambda: _steps(options, busy.address),
            "beside idle runs": lambda: _beside_idle(options, idle, sizes["idle runs"]),
            "beside other paced runs": lambda: _steps(options, busy.address, others, _OTHER_PACE),
            "beside runs made and deleted": lambda: _steps_while(options, busy, _churn),
            "while it is forked": lambda: _steps_while(options, busy, _fork),
            "beside a big run that saves": lambda: _steps(
                options, busy.address, ["big"], _BIG_PACE, seconds=2 * _seconds(options)
            ),
        }
        found: dict[str, list[list[float]]] = {name: [] for name in cases}

        def case(name: str) -> Callable[[], float]:
            def turn() -> float:
                found[name].append(cases[name]())
                return 0.0

            return turn

        in_turns(options.repeats, {name: case(name) for name in cases})
    series = [
        Series(
            f"{what}, {name}",
            "ms",
            [1e3 * quantile(turn, share) for turn in found[name]],
            None if name == "alone" else f"{what}, alone",
        )
        for what, share in (("median", 0.5), ("p99", 0.99), ("worst", 1.0))
        for name in cases
    ]
    told = {
        **sizes,
        "batch": BATCH,
        "steps a second": PACE,
        "of each other": _OTHER_PACE,
        "seconds a turn": _seconds(options),
    }
    yield Table("runs: a step of one paced run, to its acknowledgement", series, told)


def _seconds(options: Options) -> float:
    return 1.0 if options.quick else 8.0


def _fill(client: steelyard.Client, sizes: dict[str, int]) -> list[str]:
    """The runs of the busy server; the names of the others."""
    client.create_dataset("d", sizes["ids"])
    client.create_dataset("many", sizes["ids of the big run"])
    client.create_run("big", dataset="many", batch_size=_BIG_BATCH, draw=DRAW)
    others = [f"other-{number}" for number in range(sizes["other runs"])]
    for name in ["paced", *others]:
        client.create_run(name, dataset="d", batch_size=BATCH, draw=DRAW)
    return others


def _fill_idle(server: ServerProcess, sizes: dict[str, int]) -> None:
    with server:
        client = server.client(timeout=60)
        client.create_dataset("d", sizes["ids"])
        for name in ["paced", *(f"idle-{number}" for number in range(sizes["idle runs"]))]:
            client.create_run(name, dataset="d", batch_size=BATCH, draw=DRAW)


def _beside_idle(options: Options, server: ServerProcess, runs: int) -> list[float]:
    behind = own_kernels.logged(server)
    with server:
        own_kernels.wait_for(server, behind=behind)
        if len(server.client(timeout=60).list_runs()) != runs + 1:  # which loads them
            raise RuntimeError(f"expected {runs + 1} runs")
        return _steps(options, server.address)


def _steps(
    options: Options,
    address: str,
    others: list[str] | None = None,
    pace: float = 1.0,
    seconds: float | None = None,
) -> list[float]:
    """Seconds of each step of the paced run in one turn, beside `others`, each at `pace` steps a second."""
    seconds = _seconds(options) if seconds is None else seconds
    with ExitStack() as stack:

        def program(runs: list[str], pace: float) -> Program:
            arguments = ("--address", address, "--pace", pace, "--runs", *runs)
            return stack.enter_context(Program("paced", *arguments, life=4 * seconds + 60))

        programs = [program(["paced"], PACE)]
        if others:
            programs.append(program(others, pace))
        for one in programs:
            one.read()
        start = time.monotonic() + 0.2
        for one in programs:
            one.tell({"start": start, "stop": start + seconds})
        answers = [one.read() for one in programs]
    errors = [error for answer in answers for error in answer["errors"]]
    if errors or not answers[0]["seconds"]:
        raise RuntimeError(f"expected steps, got {errors or 'none'}")
    found: list[float] = answers[0]["seconds"]
    return found


def _steps_while(
    options: Options, server: ServerProcess, work: Callable[[steelyard.Client], None]
) -> list[float]:
    with _again_and_again(server, work):
        return _steps(options, server.address)


@contextmanager
def _again_and_again(server: ServerProcess, work: Callable[[steelyard.Client], None]) -> Iterator[None]:
    over, errors = threading.Event(), list[BaseException]()

    def go_on() -> None:
        client = server.client(timeout=60)
        while not over.is_set():
            try:
                work(client)
            except BaseException as error:
                errors.append(error)
                return

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
    if errors:
        raise errors[0]


def _churn(client: steelyard.Client) -> None:
    """Makes, trains, forks and deletes runs beside the one that is measured."""
    run = client.create_run("made", dataset="d", batch_size=BATCH, draw=DRAW, exist_ok=True)
    with run.join(timeout=60) as session:
        batch = session.next()
        session.report(batch, [1.0] * len(batch))
    run.fork("forked", step=1)
    for name in ("made", "forked"):
        client.delete_run(name)


def _fork(client: steelyard.Client) -> None:
    """Forks the run that is measured, once in a second."""
    run = client.run("paced")
    run.fork("from-paced", step=run.info().closed_steps)
    client.delete_run("from-paced")
    time.sleep(1)
