"""What a trainer and its owner do in a small life of a run, in two parts, by whichever client is on the path.

    python tests/compat/life.py ADDRESS begin|resume

Prints one JSON object: what was served and seen. Needs no more of the client than the oldest version that is tried.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

import steelyard

SIZE = 120
SCORED = {"method": "scored", "score": "last_loss", "floor": 0.1}
MIX = {"method": "temperature", "group": "domain"}


def train(run: Any, steps: int, start: int | None = None, **how: Any) -> list[Any]:
    """(step, ids, probability, weight) of each batch."""
    served = []
    with run.join(start_step=start, timeout=60, **how) as session:
        for _ in range(steps):
            batch = session.next()
            losses = (batch.ids % 7 + batch.step % 3).astype(np.float32)
            weight = session.report(batch, losses)
            served.append((batch.step, batch.ids.tolist(), batch.probability.tolist(), weight.tolist()))
    return served


def begin(client: Any) -> dict[str, Any]:
    client.create_dataset("d", SIZE, fingerprint="f")
    client.set_column("d", "domain", np.arange(SIZE) % 3)
    scored = client.create_run(
        "scored", dataset="d", batch_size=16, staleness=1, draw=SCORED, weigh={"method": "importance"}
    )
    mixed = client.create_run("mixed", dataset="d", batch_size=16, mix=MIX, exist_ok=True)
    scored.observe(np.arange(10), np.linspace(0, 1, 10))
    served = train(scored, 12, attempt="a", fingerprint="f")
    scored.bookmark("here")
    return {"scored": served, "mixed": train(mixed, 3), "info": told(scored)}


def resume(client: Any) -> dict[str, Any]:
    scored = client.run("scored")
    served = train(scored, 6, start=10, attempt="b")
    fork = scored.fork("forked", step=8, mix=MIX)
    again = train(fork, 3)
    scored.change_policy(draw={"method": "shuffle"})
    client.append_examples("d", 8)
    client.retire("d", [3, 4])
    after = train(scored, 3)
    scored.rewind(5)
    client.delete_run("forked")
    return {
        "scored": served,
        "forked": again,
        "after": after,
        "info": told(scored),
        "runs": sorted(one.name for one in client.list_runs()),
    }


def told(run: Any) -> dict[str, Any]:
    stats = run.stats()
    return {
        "stats": [stats.next_step, stats.reported_losses, stats.duplicate_reports, stats.closed_steps],
        "history": run.history([0, 1, 2]),
        "column": np.nan_to_num(run.column("last_loss"), nan=-1).tolist(),
        "events": [[one.record, type(one).__name__] for one in run.events()],
        "batch": run.batch(2).ids.tolist(),
        "bookmarks": dict(run.info().bookmarks),
    }


if __name__ == "__main__":
    address, part = sys.argv[1:]
    with steelyard.connect(address, timeout=60) as client:
        print(json.dumps({"begin": begin, "resume": resume}[part](client)))
