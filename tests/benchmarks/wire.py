"""Ids served and durably reported through gRPC on loopback, beside a bare stream of the same bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from steelyard import wire
from steelyard.testing import ServerProcess
from steelyard.v1 import arrays_pb2
from steelyard.v1 import trainer_pb2 as pb
from tests.benchmarks import own_kernels
from tests.benchmarks.measure import Options, Series, Table, in_turns
from tests.benchmarks.processes import Load, Program, load
from tests.benchmarks.programs import bare

BATCH = 1024
DRAW = {"method": "scored", "score": "last_loss", "floor": 0.05}
STALENESS = 16
"""Batches a rank may hold ahead, and reports under way of a bare stream."""


def measure(options: Options) -> Iterator[Table]:
    size = 10_000 if options.quick else 1_000_000
    with ServerProcess(options.scratch / "wire", durability="sync") as server:
        own_kernels.wait_for(server)
        server.client().create_dataset("d", size)
        yield _table(options, server, size, ranks=1, processes=1)
        yield _table(options, server, size, ranks=4 if options.quick else 64, processes=2)


def message_sizes(count: int, size: int) -> tuple[int, int]:
    """Bytes of a step's request and of its response: a slice of `count` out of `size` ids, and what goes with it."""
    report = pb.Report(step=1000, offset=count, digest=2**63)
    values = wire.pack(np.ones(count, np.float32))
    report.signals.append(arrays_pb2.Signal(name="loss", values=values))
    request = pb.TrainRequest(
        messages=[pb.TrainerMessage(report=report), pb.TrainerMessage(credit=pb.Credit(batches=1))]
    )
    batch = pb.Batch(step=1000, offset=count, batch_size=BATCH, state_version=1000, digest=2**63)
    batch.ids.CopyFrom(wire.pack_ids(np.arange(count), size))
    batch.probability.CopyFrom(wire.pack(np.ones(count)))
    acknowledgement = pb.Acknowledgement(
        step=1000, offset=count, count=count, disposition=pb.DISPOSITION_APPLIED
    )
    response = pb.TrainResponse(
        messages=[pb.RunMessage(batch=batch), pb.RunMessage(acknowledgement=acknowledgement)]
    )
    return request.ByteSize(), response.ByteSize()


def _table(options: Options, server: ServerProcess, size: int, ranks: int, processes: int) -> Table:
    """One rank has the connection to itself either way; several of one process share it, as sessions do."""
    seconds = 0.3 if options.quick else 3.0
    a_slice = BATCH // ranks
    up, down = message_sizes(a_slice, size)
    loads: dict[str, list[Load]] = {}
    with Program("bare_server", "--answers", down, life=400) as echo:
        port = echo.read()["port"]

        def bare_streams(method: str, *flags: str) -> Callable[[], Load]:
            arguments = ("--port", port, "--method", method, "--streams", ranks // processes)
            client = ("bare_client", (*arguments, "--credit", STALENESS, "--report", up, *flags))
            return lambda: load(echo.pid, [client] * processes, seconds)

        def steelyard_itself() -> Load:
            name = f"{ranks}-ranks-{len(loads['steelyard'])}"
            return load(server.pid, _trainers(server, name, ranks, processes), seconds)

        cases = {"steelyard": steelyard_itself, "bare stream": bare_streams(bare.ECHO, "--shared")}
        if ranks > 1:
            cases["bare stream, a connection each"] = bare_streams(bare.ECHO)
        cases["bare stream, gathered"] = bare_streams(bare.GATHERED, "--shared")
        loads |= {name: [] for name in cases}

        def steps_of(name: str) -> float:
            loads[name].append(cases[name]())
            return loads[name][-1].steps

        found = in_turns(options.repeats, {name: partial(steps_of, name) for name in cases})
    series = [
        Series(name, "ids/s", [a_slice * steps for steps in values], "bare stream")
        for name, values in found.items()
    ]
    series += _over(found, [name for name in cases if name not in ("steelyard", "bare stream")])
    series.append(Series("steelyard, reports acknowledged", "/s", found["steelyard"]))
    series += _cpu(loads)
    series += _fairness(loads["steelyard"], ranks)
    sizes = {"ids": size, "batch": BATCH, "ranks": ranks, "client processes": processes}
    return Table("wire: scored draw, durability sync", series, {**sizes, "bytes up": up, "bytes down": down})


def _over(found: Mapping[str, list[float]], others: Sequence[str]) -> list[Series]:
    """Steelyard beside the bare streams that the table's ratios are not of."""
    return [
        Series(
            f"steelyard over {name}",
            "x",
            [a / b for a, b in zip(found["steelyard"], found[name], strict=True)],
        )
        for name in others
    ]


def _cpu(loads: Mapping[str, list[Load]]) -> list[Series]:
    series = []
    for name in ("steelyard", "bare stream"):
        series.append(Series(f"server's CPU a slice, {name}", "µs", [one.cpu for one in loads[name]]))
        clients = [
            1e6
            * sum(answer["cpu"] for answer in one.answers)
            / sum(answer["steps"] for answer in one.answers)
            for one in loads[name]
        ]
        series.append(Series(f"clients' CPU a slice, {name}", "µs", clients))
    return series


def _fairness(loads: Sequence[Load], ranks: int) -> list[Series]:
    """Of the rank that fares worst in each turn."""
    found: dict[str, list[float]] = {}
    for one in loads:
        between = [pair for answer in one.answers for pair in answer["between"]]
        rounds = [pair for answer in one.answers for pair in answer["rounds"]]
        steps = sum(answer["steps"] for answer in one.answers)
        values = {
            "between batches, median, ms": 1e3 * statistics.median(middle for middle, _ in between),
            "between batches, p99, worst rank, ms": 1e3 * max(last for _, last in between),
            f"between batches, p99 / median of {STALENESS}, worst rank": max(
                last / middle for middle, last in rounds
            ),
            "least served rank / mean": min(answer["least"] for answer in one.answers) * ranks / steps,
            "most served rank / mean": max(answer["most"] for answer in one.answers) * ranks / steps,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return [Series(name, "", values) for name, values in found.items()]


def _trainers(
    server: ServerProcess, name: str, ranks: int, processes: int
) -> list[tuple[str, Sequence[object]]]:
    """A fresh run, and the programs that train it."""
    run = server.client().create_run(name, dataset="d", batch_size=BATCH, staleness=STALENESS, draw=DRAW)
    each = ranks // processes
    common = ("--address", server.address, "--run", run.name, "--world-size", ranks, "--ranks", each)
    return [("trainers", (*common, "--first-rank", first)) for first in range(0, ranks, each)]
