"""Threads or asyncio for the server's edge, answers one by one or gathered: side by side, without Steelyard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

from tests.benchmarks.measure import Options, Series, Table, in_turns, quantile
from tests.benchmarks.processes import Load, Program, load
from tests.benchmarks.programs import bare

_REPORT, _ACKNOWLEDGEMENT, _BATCH = 4096, 32, 8192
"""Bytes of the messages."""
_CREDIT = 4
_WORK_SECONDS = 0.00015
"""The actor's work for a report."""

_SERVERS = {
    "threads": ("threads", [_ACKNOWLEDGEMENT, _BATCH]),
    "asyncio": ("asyncio", [_ACKNOWLEDGEMENT, _BATCH]),
    "asyncio, gathered": ("asyncio", [_ACKNOWLEDGEMENT + _BATCH]),
}


def measure(options: Options) -> Iterator[Table]:
    sorts = bare.sorts_in(_WORK_SECONDS)
    with ExitStack() as stack:
        servers: dict[str, tuple[Program, int]] = {}
        for name, (edge, answers) in _SERVERS.items():
            arguments = ("--stack", edge, "--sorts", sorts, "--answers", *answers)
            server = stack.enter_context(Program("bare_server", *arguments, life=500))
            servers[name] = (server, server.read()["port"])
        sizes = {"credit": _CREDIT, "sorts a report": sorts}
        yield _table(options, servers, sizes, streams=1, processes=1)
        yield _table(options, servers, sizes, streams=4 if options.quick else 64, processes=2)


def _table(
    options: Options,
    servers: dict[str, tuple[Program, int]],
    sizes: Mapping[str, object],
    streams: int,
    processes: int,
) -> Table:
    seconds = 0.3 if options.quick else 2.0
    loads: dict[str, list[Load]] = {name: [] for name in _SERVERS}

    def turn(name: str) -> float:
        server, port = servers[name]
        ends = ("--port", port, "--method", bare.PIPELINE)
        size = ("--streams", streams // processes, "--credit", _CREDIT, "--report", _REPORT)
        loads[name].append(load(server.pid, [("bare_client", (*ends, *size))] * processes, seconds))
        return loads[name][-1].steps

    def case(name: str) -> Callable[[], float]:
        return lambda: turn(name)

    found = in_turns(options.repeats, {name: case(name) for name in _SERVERS})
    measures = {
        "steps": ("/s", lambda one: one.steps),
        "server's CPU a step": ("µs", lambda one: one.cpu),
        "latency, median": ("ms", lambda one: 1e3 * quantile(_latencies(one), 0.5)),
        "latency, p99": ("ms", lambda one: 1e3 * quantile(_latencies(one), 0.99)),
    }
    against = {"asyncio": "threads", "asyncio, gathered": "asyncio"}
    series = [
        Series(
            f"{what}, {name}",
            unit,
            [value(one) for one in loads[name]],
            f"{what}, {against[name]}" if name in against else None,
        )
        for what, (unit, value) in measures.items()
        for name in found
    ]
    sizes = {"streams": streams, "client processes": processes, **sizes}
    return Table("edge: a report through an actor and a writer", series, sizes)


def _latencies(one: Load) -> list[float]:
    return [took for answer in one.answers for took in answer["seconds"]]
