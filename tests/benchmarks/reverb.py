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
_MANY = 16384
"""Losses or priorities of a larger call."""
_OBSERVED = {count: f"steelyard: losses, observe of {count}, fsynced" for count in (BATCH, _MANY)}
_CASES = {
    "reverb: ids, client.sample": ("sample", BATCH, _OURS),
    "reverb: ids, TimestepDataset": ("dataset", BATCH, _OURS),
    f"reverb: priorities, client.mutate_priorities of {BATCH}": ("mutate", BATCH, _OURS),
    f"reverb: priorities, TFClient.update_priorities of {BATCH}": ("update", BATCH, _OURS),
    f"reverb: priorities, client.mutate_priorities of {_MANY}": ("mutate", _MANY, _OBSERVED[_MANY]),
    f"reverb: priorities, TFClient.update_priorities of {_MANY}": ("update", _MANY, _OBSERVED[_MANY]),
}
"""What is asked of its client, for how many ids a call, and what of ours is held against it."""
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
    "over: ids served, and losses fsynced meanwhile; larger calls are held against observe of as many",
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
            **{
                name: partial(_observe, _run(server, f"observed-{count}"), min(count, size), size, seconds)
                for count, name in _OBSERVED.items()
            },
        }
        if python and namespace is not None:
            table = Program("reverb_table", "--size", size, life=1800.0, python=python, within=namespace)
            stack.enter_context(table)
            table.read()
            for name, (case, count, _) in _CASES.items():
                cases[name] = partial(_ask, table, case, count, seconds)
        found = in_turns(options.repeats, cases)
    series = [Series(name, "/s", values, None if name == _OURS else _OURS) for name, values in found.items()]
    for name, (_, _, own) in _CASES.items():
        if name in found:
            over = [ours / theirs for ours, theirs in zip(found[own], found[name], strict=True)]
            series.append(Series(f"steelyard over {name}", "x", over))
    sizes = {"items": size, "batch": BATCH, "larger calls": _MANY, "seconds a turn": seconds}
    yield Table("reverb: through gRPC on loopback", series, sizes, [*_NOTES, *([why] if why else [])])


def _run(server: ServerProcess, name: str) -> steelyard.Run:
    return server.client().create_run(name, dataset="d", batch_size=BATCH, staleness=STALENESS, draw=DRAW)


def _observe(run: steelyard.Run, count: int, size: int, seconds: float) -> float:
    """Losses a second of one caller that waits for each call, as a caller of mutate_priorities does."""
    rng = np.random.default_rng(3)
    ids = [rng.choice(size, count, replace=False) for _ in range(16)]
    losses = rng.lognormal(size=count).astype(np.float32)
    run.observe(ids[0], losses)
    start, calls = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < seconds:
        run.observe(ids[calls % len(ids)], losses)
        calls += 1
    return calls * count / took


def _steelyard(server: ServerProcess, name: str, seconds: float) -> float:
    _run(server, name)
    trainer = ("--address", server.address, "--run", name, "--world-size", 1, "--ranks", 1, "--first-rank", 0)
    return load(server.pid, [("trainers", trainer)], seconds).steps * BATCH


def _ask(table: Program, case: str, count: int, seconds: float) -> float:
    table.tell({"case": case, "batch": count, "seconds": seconds})
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
