"""What a training step pays on the trainer's own thread."""

from __future__ import annotations

import importlib.util
import itertools
import queue
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc
import numpy as np

import steelyard
from steelyard.testing import ServerProcess
from tests.benchmarks import own_kernels
from tests.benchmarks.measure import Options, Series, Table, in_turns, quantile
from tests.benchmarks.processes import Program
from tests.benchmarks.programs import bare
from tests.benchmarks.wire import BATCH, DRAW, message_sizes

_T = TypeVar("_T")

_COMPUTE_SECONDS = 0.005
"""Stands for the forward and backward pass, in which the next batch comes and the report leaves."""
_WEIGH = {"method": "linupper", "r": 0.4, "where": "server"}


def measure(options: Options) -> Iterator[Table]:
    size = 10_000 if options.quick else 1_000_000
    with ServerProcess(options.scratch / "step") as server:
        own_kernels.wait_for(server)
        client = server.client()
        client.create_dataset("d", size)
        for staleness in (16, 2):
            yield _prefetched(options, client, size, staleness)
        if importlib.util.find_spec("torch"):
            yield _with_torch(options, client, size)
            yield _with_loader(options, client, size)
        yield _weighed(options, client, size)


def _prefetched(options: Options, client: steelyard.Client, size: int, staleness: int) -> Table:
    run = client.create_run(
        f"prefetched-{staleness}", dataset="d", batch_size=BATCH, draw=DRAW, staleness=staleness
    )
    losses = np.random.default_rng(0).random(BATCH, np.float32)
    found = _Costs("next", "report")
    waits: list[float] = []
    with run.join(attempt="benchmark", timeout=60) as session:
        buffered = session._member.ledger.buffered

        def step() -> None:
            waits[-1] += not buffered
            batch = found.timed("next", session.next)
            time.sleep(_COMPUTE_SECONDS)
            found.timed("report", lambda: session.report(batch, losses))

        for turn in range(-1, options.repeats):  # the first one fills the pipe and warms up
            waits.append(0)
            for _ in range(found.steps(options)):
                step()
            found.end_turn(keep=turn >= 0)
    series = [*found.series(), Series("steps that waited for their batch", "", waits[1:])]
    sizes = {"ids": size, "batch": BATCH, "staleness": staleness, **found.sizes(options)}
    return Table("step: next and report on the trainer's thread, prefetched", series, sizes)


def _with_torch(options: Options, client: steelyard.Client, size: int) -> Table:
    """A DataLoader's part is its own; what is measured is what the sampler adds: an iteration of it, and update."""
    import torch

    from steelyard.torch import BatchSampler

    run = client.create_run("torch", dataset="d", batch_size=BATCH, draw=DRAW)
    losses = torch.rand(BATCH, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = _Costs("next of the sampler", "update")
    with BatchSampler(run, timeout=60) as sampler:
        batches = iter(sampler)
        for turn in range(-1, options.repeats):
            for _ in range(found.steps(options)):
                found.timed("next of the sampler", lambda: next(batches))
                time.sleep(_COMPUTE_SECONDS)
                found.timed("update", lambda: sampler.update(losses))
            found.end_turn(keep=turn >= 0)
    sizes = {"ids": size, "batch": BATCH, **found.sizes(options)}
    return Table("step: the same with torch, whose objective is in update", found.series(), sizes)


def _with_loader(options: Options, client: steelyard.Client, size: int) -> Table:
    """A DataLoader without workers, so that all of it is on the trainer's thread."""
    import torch
    from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

    import steelyard.torch

    values = torch.arange(size, dtype=torch.float32)

    class Examples(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return size

        def __getitems__(self, ids: list[int]) -> torch.Tensor:
            return values[ids]

    def loader(sampler: Iterable[list[int]]) -> DataLoader[torch.Tensor]:
        return DataLoader(Examples(), batch_sampler=sampler, collate_fn=lambda batch: batch)

    run = client.create_run("loader", dataset="d", batch_size=BATCH, draw=DRAW)
    losses = torch.rand(BATCH, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = _Costs("next, torch's random batches", "next, steelyard's batches")
    with steelyard.torch.BatchSampler(run, timeout=60) as sampler:
        random = loader(BatchSampler(RandomSampler(range(size)), BATCH, drop_last=True))
        other, own = itertools.chain.from_iterable(itertools.repeat(random)), iter(loader(sampler))
        for turn in range(-1, options.repeats):
            for _ in range(found.steps(options)):
                found.timed("next, torch's random batches", lambda: next(other))
                found.timed("next, steelyard's batches", lambda: next(own))
                time.sleep(_COMPUTE_SECONDS)
                sampler.update(losses)
            found.end_turn(keep=turn >= 0)
    series = [one for one in found.series() if not one.name.startswith("both")]
    notes = [
        "to torch's own batches belongs a permutation of all ids, once an epoch: it shows in no median",
        "a DataLoader makes a list of the ids, and its dataset picks the examples of the list: the greater part",
    ]
    return Table(
        "step: next of a DataLoader", series, {"ids": size, "batch": BATCH, **found.sizes(options)}, notes
    )


class _Costs:
    """Microseconds of named calls, a step each; their medians and 99th percentiles, and those of the sum, by turn."""

    def __init__(self, *names: str) -> None:
        self._turn: dict[str, list[float]] = {name: [] for name in names}
        self._found: dict[str, list[float]] = {}

    def steps(self, options: Options) -> int:
        """Of a turn."""
        return 20 if options.quick else 300

    def timed(self, name: str, call: Callable[[], _T]) -> _T:
        start = time.perf_counter()
        result = call()
        self._turn[name].append(1e6 * (time.perf_counter() - start))
        return result

    def end_turn(self, *, keep: bool) -> None:
        both = [sum(one) for one in zip(*self._turn.values(), strict=True)]
        for name, values in [*self._turn.items(), ("both", both)]:
            if keep:
                self._found.setdefault(f"{name}, median", []).append(statistics.median(values))
                self._found.setdefault(f"{name}, p99", []).append(quantile(values, 0.99))
        self._turn = {name: [] for name in self._turn}

    def series(self) -> list[Series]:
        return [Series(name, "µs", values) for name, values in self._found.items()]

    def sizes(self, options: Options) -> dict[str, object]:
        return {"steps a turn": self.steps(options), "compute, ms": 1e3 * _COMPUTE_SECONDS}


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
