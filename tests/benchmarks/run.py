"""Runs the benchmarks: python tests/benchmarks/run.py [--quick] [--only NAME ...] [--json FILE] [--repeats N]"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In place of this folder: its modules are tests.benchmarks.*, here and in the programs that they start.
sys.path[0] = str(ROOT)

from tests.benchmarks import (  # noqa: E402
    core,
    cycle,
    disk,
    edge,
    history,
    memory,
    methods,
    peers,
    reverb,
    rewind,
    runs,
    saving,
    scale,
    start,
    step,
    still,
    wire,
)
from tests.benchmarks.measure import Options, Table, json_of, text_of  # noqa: E402

BENCHMARKS: dict[str, Callable[[Options], Iterator[Table]]] = {
    "core": core.measure,
    "cycle": cycle.measure,
    "still": still.measure,
    "history": history.measure,
    "wire": wire.measure,
    "step": step.measure,
    "reverb": reverb.measure,
    "edge": edge.measure,
    "memory": memory.measure,
    "scale": scale.measure,
    "disk": disk.measure,
    "saving": saving.measure,
    "methods": methods.measure,
    "runs": runs.measure,
    "rewind": rewind.measure,
    "start": start.measure,
}
_LIBRARIES = ("numpy", "grpcio", "protobuf", "lmdb", "torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=5, help="turns that each figure is the median of")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--large", action="store_true", help="also 1e8 ids; 12 GB of memory, 30 GB of disk")
    parser.add_argument("--huge", action="store_true", help="also 1e9 ids; needs 20 GB, and 60 GB of disk")
    parser.add_argument("--peers", type=Path, default=peers.FOLDER, help="where make peers installed them")
    parser.add_argument(
        "--json", type=Path, default=ROOT / ".cache" / "bench.json", help="where the values go"
    )
    args = parser.parse_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    began, machine, tables = time.monotonic(), _machine(), []
    for name, value in machine.items():
        print(f"{name:10} {value}")
    for name in args.only:
        # Beside the JSON, not in the system's folder for temporary files: that may be memory, where fsync is free.
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-", dir=args.json.parent) as scratch:
            options = Options(
                args.repeats, args.quick, args.large, Path(scratch), huge=args.huge, peers=args.peers
            )
            for table in BENCHMARKS[name](options):
                print(f"\n{text_of(table)}", flush=True)
                tables.append(json_of(table))
                # After each one: what was found is kept when a later one fails.
                found = {"machine": machine, "load after": os.getloadavg()[0], "tables": tables}
                args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{time.monotonic() - began:.0f} s, load now {os.getloadavg()[0]:.2f}; values in {args.json}")


def _machine() -> dict[str, str]:
    found = {
        name: importlib.metadata.version(name)
        for name in _LIBRARIES
        if importlib.util.find_spec(_module(name))
    }
    return {
        "cpu": f"{_cpu()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.2f}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version}" for name, version in found.items()),
    }


def _module(distribution: str) -> str:
    return {"grpcio": "grpc", "protobuf": "google"}.get(distribution, distribution)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
