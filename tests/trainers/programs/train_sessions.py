"""A trainer without torch under torchrun: train_sessions.py ADDRESS RUN OUT FIRST_STEP END_STEP

Writes the attempt that it joined and the ids that it trained to OUT-RANK.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

import steelyard


def main(address: str, name: str, out: str, first: str, end: str) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    trained = []
    with steelyard.connect(address).run(name).join(rank, world_size, start_step=int(first)) as session:
        while session.step < int(end):
            batch = session.next()
            session.report(batch, np.asarray(1.0 + batch.ids % 7, np.float32))
            trained.append(batch.ids.tolist())
        attempt = session.attempt
    Path(f"{out}-{rank}").write_text(json.dumps({"attempt": attempt, "ids": trained}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
