"""Ids served and durably reported through gRPC on loopback, beside a bare stream of the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from steelyard import wire
from steelyard.testing import ServerProcess
from steelyard.v1 import arrays_pb2
from steelyard.v1 import trainer_pb2 as pb
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
    seconds = 0.3 if options.quick else 3.0
    a_slice = BATCH // ranks
    up, down = message_sizes(a_slice, size)
    loads: dict[str, list[Load]] = {"steelyard": [], "bare stream": []}
    with Program("bare_server", "--answers", down, life=400) as echo:
        ends = ("--port", echo.read()["port"], "--method", bare.ECHO, "--streams", ranks // processes)
        plain = [("bare_client", (*ends, "--credit", STALENESS, "--report", up))] * processes

        def steelyard_itself() -> float:
            name = f"{ranks}-ranks-{len(loads['steelyard'])}"
            loads["steelyard"].append(load(server.pid, _trainers(server, name, ranks, processes), seconds))
            return loads["steelyard"][-1].steps * a_slice

        def bare_stream() -> float:
            loads["bare stream"].append(load(echo.pid, plain, seconds))
            return loads["bare stream"][-1].steps * a_slice

        found = in_turns(options.repeats, {"steelyard": steelyard_itself, "bare stream": bare_stream})
    series = [Series(name, "ids/s", found[name], "bare stream") for name in loads]
    cpu = "server's CPU a slice, {}".format
    series += [
        Series(cpu(name), "µs", [one.cpu for one in loads[name]], cpu("bare stream")) for name in loads
    ]
    sizes = {"ids": size, "batch": BATCH, "ranks": ranks, "client processes": processes}
    return Table("wire: scored draw, durability sync", series, {**sizes, "bytes up": up, "bytes down": down})


def _trainers(
    server: ServerProcess, name: str, ranks: int, processes: int
) -> list[tuple[str, Sequence[object]]]:
    """A fresh run, and the programs that train it."""
    run = server.client().create_run(name, dataset="d", batch_size=BATCH, staleness=STALENESS, draw=DRAW)
    each = ranks // processes
    common = ("--address", server.address, "--run", run.name, "--world-size", ranks, "--ranks", each)
    return [("trainers", (*common, "--first-rank", first)) for first in range(0, ranks, each)]
