"""Measures what the runbook's table of sizes says, on a server inside this process.

python deploy/sizing.py              bytes on disk of a step and of an example, by draw
python deploy/sizing.py --starts     seconds from the start of a server to the first batch, by examples
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import steelyard

SCORED = {"method": "scored", "score": "last_loss", "floor": 0.05}
DRAWS: dict[str, dict[str, Any]] = {
    "shuffle": {"method": "shuffle"},
    "scored": SCORED,
    "infobatch": {"method": "infobatch"},
}
STEPS = 200


def main() -> int:
    """Exit status: 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--examples", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024, 8192])
    parser.add_argument("--starts", action="store_true", help="time starts instead")
    wanted = parser.parse_args()
    for line in _starts(wanted.examples) if wanted.starts else _sizes(wanted.examples, wanted.batches):
        print(line, flush=True)
    return 0


def _sizes(examples: list[int], batches: list[int]) -> Any:
    heads = (
        "draw",
        "examples",
        "batch",
        "journal B/step",
        "B/id",
        "checkpoints B/example",
        "history B/example",
        "observed B/example",
        "in use MB",
        "runbook's sum MB",
    )
    yield "  ".join(heads)
    for name, draw in DRAWS.items():
        for size in examples:
            for batch in batches:
                with tempfile.TemporaryDirectory() as folder:
                    journal, retention, live = _trained(Path(folder), draw, size, batch)
                values = (
                    name,
                    f"{size}",
                    f"{batch}",
                    f"{journal / STEPS:.0f}",
                    f"{journal / STEPS / batch:.1f}",
                    f"{retention.checkpoint_bytes / size:.1f}",
                    f"{retention.history_bytes / size:.1f}",
                    f"{(retention.journal_bytes - journal) / size:.1f}" if "score" in draw else "-",
                    f"{live / 1e6:.1f}",
                    f"{(size * 105 + STEPS * batch * 24 + batch * 5500) / 1e6:.1f}",
                )
                yield "  ".join(value.rjust(len(head)) for head, value in zip(heads, values, strict=True))


def _trained(folder: Path, draw: dict[str, Any], size: int, batch: int) -> tuple[int, Any, int]:
    """Bytes of the journal of STEPS steps, the retention of the run that did them, saved, and the bytes in use of the
    file. A scored one had a loss of every example before, which the runbook's sum leaves out."""
    with steelyard.local(folder) as client:
        before = _train(client, draw, size, batch)
    # Stopping saved it.
    with steelyard.local(folder) as client:
        retention = client.run("r").retention()
        live = client.admin.check().figures["live_bytes"]
    return retention.journal_bytes - before, retention, live


def _train(client: steelyard.Client, draw: dict[str, Any], size: int, batch: int) -> int:
    """The bytes of the journal before the first step."""
    client.create_dataset("d", size=size)
    run = client.create_run("r", dataset="d", batch_size=batch, staleness=4, draw=draw, seed=0)
    random = np.random.default_rng(0)
    if "score" in draw:
        run.observe(np.arange(size), random.gamma(2.0, 1.0, size).astype(np.float32))
    before: int = run.retention().journal_bytes
    losses = random.gamma(2.0, 1.0, batch).astype(np.float32)
    with run.join(rank=0, world_size=1) as session:
        for _ in range(STEPS):
            session.report(session.next(), losses)
    return before


def _starts(examples: list[int]) -> Any:
    yield f"{'examples':>10} {'start to serving, s':>20} {'first batch after, s':>21}"
    for size in examples:
        with tempfile.TemporaryDirectory() as folder:
            with steelyard.local(folder) as client:
                _train(client, SCORED, size, 1024)
            begun = time.monotonic()
            with steelyard.local(folder) as client:
                serving = time.monotonic()
                with client.run("r").join(rank=0, world_size=1) as session:
                    session.next()
                first = time.monotonic()
        yield f"{size:10} {serving - begun:20.2f} {first - serving:21.2f}"


if __name__ == "__main__":
    sys.exit(main())
