"""Trains some steps of a run and prints a line of JSON for each: [step, ids]. Losses follow from the ids alone.

python train.py ADDRESS STEPS
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

SIZE = 500
SPEC: dict[str, Any] = {
    "dataset": "d",
    "batch_size": 16,
    "seed": 7,
    "staleness": 2,
    "draw": {"method": "scored", "score": "last_loss", "floor": 0.1, "unseen": "max"},
}


def train(client: Any, steps: int) -> Iterator[tuple[int, list[int]]]:
    """Step and ids of the next `steps` batches, each reported before the next is asked for."""
    client.create_dataset("d", size=SIZE, exist_ok=True)
    run = client.create_run("r", **SPEC, exist_ok=True)
    with run.join(rank=0, world_size=1) as session:
        for _ in range(steps):
            batch = session.next()
            session.report(batch, (1.0 + batch.ids % 13).astype(np.float32))
            yield int(batch.step), batch.ids.tolist()


if __name__ == "__main__":
    import steelyard

    with steelyard.connect(sys.argv[1]) as connected:
        for served in train(connected, int(sys.argv[2])):
            print(json.dumps(served))
