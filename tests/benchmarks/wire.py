"""Ids served and durably reported through gRPC on loopback, beside a bare stream of the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

import steelyard
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
    yield _table(options, ranks=1, processes=1)
    yield _table(options, ranks=4 if options.quick else 64, processes=2)


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


def _table(options: Options, ranks: int, processes: int) -> Table:
    size = 10_000 if options.quick else 1_000_000
    seconds = 0.3 if options.quick else 3.0
    a_slice = BATCH // ranks
    up, down = message_sizes(a_slice, size)
    directory = options.scratch / f"wire-{ranks}"
    loads: dict[str, list[Load]] = {"bare stream": [], "steelyard": []}
    with (
        ServerProcess(directory, durability="sync") as server,
        Program("bare_server", "--answers", down, life=400) as echo,
    ):
        port = echo.read()["port"]
        client = server.client()
        client.create_dataset("d", size)
        streams = (
            "--method",
            bare.ECHO,
            "--streams",
            ranks // processes,
            "--credit",
            STALENESS,
            "--report",
            up,
        )
        plain = [("bare_client", ("--port", port, *streams))] * processes

        def ids_a_second(
            name: str, server_pid: int, clients: Sequence[tuple[str, Sequence[object]]]
        ) -> float:
            loads[name].append(load(server_pid, clients, seconds))
            return loads[name][-1].steps * a_slice

        cases: dict[str, Callable[[], float]] = {
            "bare stream": lambda: ids_a_second("bare stream", echo.pid, plain),
            "steelyard": lambda: ids_a_second(
                "steelyard",
                server.pid,
                _trainers(client, server.address, ranks, processes, len(loads["steelyard"])),
            ),
        }
        found = in_turns(options.repeats, cases)
    series = [Series(name, "ids/s", found[name], "bare stream") for name in ("steelyard", "bare stream")]
    series += [
        Series(
            f"server's CPU a slice, {name}",
            "µs",
            [one.cpu for one in loads[name]],
            "server's CPU a slice, bare stream",
        )
        for name in ("steelyard", "bare stream")
    ]
    sizes = {
        "ids": size,
        "batch": BATCH,
        "ranks": ranks,
        "client processes": processes,
        "bytes up": up,
        "bytes down": down,
    }
    return Table("wire: scored draw, durability sync", series, sizes)


def _trainers(
    client: steelyard.Client, address: str, ranks: int, processes: int, turn: int
) -> list[tuple[str, Sequence[object]]]:
    """A fresh run, and the programs that train it."""
    run = client.create_run(
        f"r{turn}", dataset="d", batch_size=BATCH, staleness=STALENESS, draw=DRAW, weigh={"method": "uniform"}
    )
    each = ranks // processes
    common = ("--address", address, "--run", run.name, "--world-size", ranks, "--ranks", each)
    return [("trainers", (*common, "--first-rank", first)) for first in range(0, ranks, each)]
