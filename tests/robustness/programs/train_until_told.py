"""Trains every run of a server, each in its own thread and attempt, until the file says at which step to stop.

train_until_told.py ADDRESS STOP_FILE: losses are a pure function of id and step, so that whoever trains a step,
however often, reports the same.
"""

import sys
import threading
from pathlib import Path

import numpy as np

import steelyard


def loss(ids, step):
    return np.asarray(1.0 + ids % 7 + (step * 31 % 13) / 8, np.float32)


def train(run: steelyard.Run, stop: Path) -> None:
    with run.join(prefetch=3, timeout=60, reconnect_timeout=60) as session:
        while not (stop.exists() and session.step >= int(stop.read_text())):
            batch = session.next()
            session.report(batch, loss(batch.ids, batch.step))
        session.flush(60)


def main() -> None:
    client, stop = steelyard.connect(sys.argv[1], timeout=60), Path(sys.argv[2])
    runs = [client.run(info.name) for info in client.list_runs()]
    threads = [threading.Thread(target=train, args=(run, stop)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
