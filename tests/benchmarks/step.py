"""What a training step pays on the trainer's own thread."""

from __future__ import annotations

import queue
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import numpy as np

import steelyard
from steelyard.testing import ServerProcess
from tests.benchmarks.measure import Options, Series, Table, in_turns, quantile
from tests.benchmarks.processes import Program
from tests.benchmarks.programs import bare
from tests.benchmarks.wire import BATCH, DRAW, message_sizes

_COMPUTE_SECONDS = 0.005
"""Stands for the forward and backward pass, in which the next batch comes and the report leaves."""
_WEIGH = {"method": "linupper", "r": 0.4, "where": "server"}


def measure(options: Options) -> Iterator[Table]:
    size = 10_000 if options.quick else 1_000_000
    with ServerProcess(options.scratch / "step") as server:
        client = server.client()
        client.create_dataset("d", size)
        yield _prefetched(options, client, size)
        yield _weighed(options, client, size)


def _prefetched(options: Options, client: steelyard.Client, size: int) -> Table:
    steps = 20 if options.quick else 300
    run = client.create_run("prefetched", dataset="d", batch_size=BATCH, draw=DRAW)
    losses = np.random.default_rng(0).random(BATCH, np.float32)
    names = ("next, median", "next, p99", "report, median", "report, p99", "both, median", "both, p99")
    found: dict[str, list[float]] = {name: [] for name in names}
    with run.join(attempt="benchmark", timeout=60) as session:
        for _ in range(session.prefetch):
            session.report(session.next(), losses)
        time.sleep(10 * _COMPUTE_SECONDS)
        for _ in range(options.repeats):
            taken, reported = [], []
            for _ in range(steps):
                start = time.perf_counter()
                batch = session.next()
                middle = time.perf_counter()
                time.sleep(_COMPUTE_SECONDS)
                again = time.perf_counter()
                session.report(batch, losses)
                taken.append(1e6 * (middle - start))
                reported.append(1e6 * (time.perf_counter() - again))
            both = [a + b for a, b in zip(taken, reported, strict=True)]
            for name, values in (("next", taken), ("report", reported), ("both", both)):
                found[f"{name}, median"].append(statistics.median(values))
                found[f"{name}, p99"].append(quantile(values, 0.99))
    series = [Series(name, "µs", values) for name, values in found.items()]
    sizes = {"ids": size, "batch": BATCH, "steps a turn": steps, "compute, ms": 1e3 * _COMPUTE_SECONDS}
    return Table("step: next and report on the trainer's thread, prefetched", series, sizes)


def _weighed(options: Options, client: steelyard.Client, size: int) -> Table:
    """Report and wait for its weights, against the same bytes there and back."""
    rounds = 20 if options.quick else 200
    up, _ = message_sizes(BATCH, size)
    down = 4 * BATCH + 64
    run = client.create_run("weighed", dataset="d", batch_size=BATCH, weigh=_WEIGH)
    losses = np.random.default_rng(0).random(BATCH, np.float32)
    report = bare.message(0, up)
    with (
        Program("bare_server", "--answers", down) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.read()['port']}", options=bare.OPTIONS) as channel,
        _round_trips(channel) as there_and_back,
        run.join(attempt="benchmark", timeout=60) as session,
    ):
        unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(bare.UNARY)

        def weigh() -> float:
            batch = session.next()
            time.sleep(_COMPUTE_SECONDS / 5)
            start = time.perf_counter()
            session.report(batch, losses)
            return time.perf_counter() - start

        def paced(action: Callable[[], object]) -> float:
            time.sleep(_COMPUTE_SECONDS / 5)
            start = time.perf_counter()
            action()
            return time.perf_counter() - start

        def median(one: Callable[[], float]) -> float:
            return 1e3 * statistics.median(one() for _ in range(rounds))

        cases: dict[str, Callable[[], float]] = {
            "bare stream, there and back": lambda: median(lambda: paced(lambda: there_and_back(report))),
            "bare unary call": lambda: median(lambda: paced(lambda: unary(report, timeout=10))),
            "report, weighed by the server": lambda: median(weigh),
        }
        found = in_turns(options.repeats, cases)
    reference = next(iter(cases))
    series = [
        Series(name, "ms", values, None if name == reference else reference) for name, values in found.items()
    ]
    return Table(
        "step: weights from the server", series, {"batch": BATCH, "bytes up": up, "bytes down": down}
    )


@contextmanager
def _round_trips(channel: grpc.Channel) -> Iterator[Callable[[bytes], bytes]]:
    """A function that sends a message on one stream and waits for the answer."""
    reports: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(bare.ECHO)
    answers = call(iter(reports.get, None), timeout=300)

    def there_and_back(report: bytes) -> bytes:
        reports.put(report)
        return next(answers)

    try:
        yield there_and_back
    finally:
        reports.put(None)
        answers.cancel()
