"""Ids and losses a second through gRPC on loopback, beside Reverb's prioritised table: each a server and one client."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache, partial

import numpy as np

import steelyard
from steelyard.testing import ServerProcess
from tests.benchmarks import own_kernels, peers
from tests.benchmarks.measure import Options, Series, Table, in_turns
from tests.benchmarks.processes import Program, load
from tests.benchmarks.wire import BATCH, DRAW, STALENESS

_OURS = "steelyard: ids served, and as many losses fsynced"
_OBSERVED = "steelyard: losses, observe of a batch, fsynced"
_CASES = {
    "sample": "reverb: ids, client.sample",
    "dataset": "reverb: ids, TimestepDataset",
    "mutate": "reverb: priorities, client.mutate_priorities",
    "update": "reverb: priorities, TFClient.update_priorities",
}
_NOTES = (
    (
        "steelyard serves ids and takes as many losses back at the same time, both durable; a figure of "
        "Reverb is that of one of the two by itself, in memory"
    ),
    (
        "Reverb also carries payloads, here one byte an item, and its dataset comes batched by 1024; "
        "client.sample is its plain Python call, of which it says itself that training should use the "
        "datasets"
    ),
    "Reverb draws independent ids; steelyard's batch is stratified or distinct, and shuffled",
)


def measure(options: Options) -> Iterator[Table]:
    size = 10_000 if options.quick else 1_000_000 if options.large else 100_000
    seconds = 0.3 if options.quick else 2.0
    python, why = peers.python_of(options.peers, "reverb")
    namespace = lonely() if python else []
    if python and namespace is None:
        why = "reverb: its server binds every interface, and no network namespace can be made here (unshare)"
    with ExitStack() as stack:
        server = stack.enter_context(ServerProcess(options.scratch / "steelyard", durability="sync"))
        own_kernels.wait_for(server)
        server.client().create_dataset("d", size)
        numbers = iter(range(2**62))
        cases: dict[str, Callable[[], float]] = {
            _OURS: lambda: _steelyard(server, f"r{next(numbers)}", seconds),
            _OBSERVED: partial(_observe, _run(server, "observed"), size, seconds),
        }
        if python and namespace is not None:
            table = Program("reverb_table", "--size", size, life=1800.0, python=python, within=namespace)
            stack.enter_context(table)
            table.read()
            for case, name in _CASES.items():
                cases[name] = partial(_ask, table, case, seconds)
        found = in_turns(options.repeats, cases)
    series = [Series(name, "/s", values, None if name == _OURS else _OURS) for name, values in found.items()]
    for name in cases:
        if name in _CASES.values():
            over = [ours / theirs for ours, theirs in zip(found[_OURS], found[name], strict=True)]
            series.append(Series(f"steelyard over {name}", "x", over))
    sizes = {"items": size, "batch": BATCH, "seconds a turn": seconds}
    yield Table("reverb: through gRPC on loopback", series, sizes, [*_NOTES, *([why] if why else [])])


def _run(server: ServerProcess, name: str) -> steelyard.Run:
    return server.client().create_run(name, dataset="d", batch_size=BATCH, staleness=STALENESS, draw=DRAW)


def _observe(run: steelyard.Run, size: int, seconds: float) -> float:
    """Losses a second of one caller that waits for each call, as a caller of mutate_priorities does."""
    rng = np.random.default_rng(3)
    ids = [rng.choice(size, BATCH, replace=False) for _ in range(32)]
    losses = rng.lognormal(size=BATCH).astype(np.float32)
    run.observe(ids[0], losses)
    start, calls = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < seconds:
        run.observe(ids[calls % len(ids)], losses)
        calls += 1
    return calls * BATCH / took


def _steelyard(server: ServerProcess, name: str, seconds: float) -> float:
    _run(server, name)
    trainer = ("--address", server.address, "--run", name, "--world-size", 1, "--ranks", 1, "--first-rank", 0)
    return load(server.pid, [("trainers", trainer)], seconds).steps * BATCH


def _ask(table: Program, case: str, seconds: float) -> float:
    table.tell({"case": case, "batch": BATCH, "seconds": seconds})
    rate: float = table.read()["rate"]
    return rate


@lru_cache
def lonely() -> Sequence[str] | None:
    """What runs a command in a network namespace of its own that holds only loopback; None where none can be made."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return None
    for flags in ("-n", "-rn"):
        prefix = ["unshare", flags, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        if subprocess.run([*prefix, "true"], capture_output=True, check=False, timeout=20).returncode == 0:
            return prefix
    return None
