"""The server's process ends: killed, asked to end, or out of memory."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.robustness.faults.registry import Bench, Round, fault
from tests.robustness.faults.scene import Scene


@fault(
    "server killed",
    how="kill -9 at a random moment, 1e6 examples; started again at once",
    bar="0 acknowledged lost, 0 counted twice, state as without the fault, same batches",
    rounds=500,
)
def kill(bench: Bench) -> Iterator[Round]:
    with Scene(bench) as scene:
        while True:
            rate = scene.load()
            time.sleep(bench.moments.uniform(0, 0.3))
            scene.server.kill()
            began = time.monotonic()
            answered = scene.server.start()
            served = scene.await_batch(began).at - began
            scene.settle()
            yield Round(rate, {"answers again, s": answered, "trains again, s": served})


@fault(
    "server asked to end",
    how="SIGTERM at a random moment; started again when it has ended",
    bar="status 0, no error for a client that retries, nothing lost, same batches",
    rounds=100,
)
def terminate(bench: Bench) -> Iterator[Round]:
    with Scene(bench) as scene:
        while True:
            rate = scene.load()
            time.sleep(bench.moments.uniform(0, 0.3))
            drained = scene.server.terminate()
            began = time.monotonic()
            scene.server.start()
            served = scene.await_batch(began).at - began
            scene.settle()
            yield Round(rate, {"drained in, s": drained, "trains again, s": served})
