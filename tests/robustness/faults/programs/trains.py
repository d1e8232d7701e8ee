"""A trainer that takes batches and reports losses as fast as it can: trains.py ADDRESS RUN TOLD_FILE

It is told on its standard input: "hold" has it report all that it took, wait until that is acknowledged, and say
"held STEP"; "go" goes on; the end of the input ends it. Nothing that a retrying client gets over ends it: whatever does
is a traceback and status 1.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import steelyard
from tests.robustness.crash.losses import losses_of
from tests.robustness.faults.told import Teller

PATIENCE = 180.0


class Orders:
    """What the standard input says, read by a thread."""

    def __init__(self) -> None:
        self.hold, self.go, self.over = threading.Event(), threading.Event(), threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            (self.hold if line.strip() == "hold" else self.go).set()
        self.over.set()
        self.hold.set()
        self.go.set()


def train(session: steelyard.Session, orders: Orders, teller: Teller) -> None:
    name = session.run_name
    while not orders.over.is_set():
        if orders.hold.is_set():
            session.flush(PATIENCE)
            orders.hold.clear()
            print(f"held {session.step}", flush=True)
            orders.go.wait()
            orders.go.clear()
            continue
        batch = session.next(PATIENCE)
        teller.tell(time.monotonic(), batch.step, batch.digest, session.step - 1 - session.unacknowledged)
        session.report(batch, losses_of(name, 0, batch.step, batch.ids), timeout=PATIENCE)


def main() -> None:
    address, name, told = sys.argv[1:]
    orders, teller = Orders(), Teller(Path(told))
    run = steelyard.Run(steelyard.connect(address, timeout=PATIENCE), name)
    with run.join(attempt="load", timeout=PATIENCE, reconnect_timeout=PATIENCE) as session:
        print("joined", flush=True)
        train(session, orders, teller)


if __name__ == "__main__":
    main()
    os._exit(0)
