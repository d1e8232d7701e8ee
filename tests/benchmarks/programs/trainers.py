"""Ranks of one run that take batches and report losses as fast as they go; what is counted is durable."""

from __future__ import annotations

import threading
import time
from argparse import Namespace

import numpy as np

import steelyard
from tests.benchmarks.programs import parent

_FIRST_STEPS = 4
"""Every rank has made these before anything is counted."""
ROUND = 16
"""Batches that a rank holds ahead. They come in bursts, so the time for as many tells of a rank that starves."""


class Rank:
    def __init__(self, args: Namespace, rank: int, started: threading.Semaphore) -> None:
        self._args = args
        self._rank = rank
        self._started = started
        self._reported = 0
        self.taken: list[float] = []
        """When each batch was handed out."""
        self.session: steelyard.Session | None = None
        self.over = False
        self.error: str | None = None

    @property
    def durable(self) -> int:
        """Steps whose report was acknowledged; read while the rank goes on, so one step off at most."""
        assert self.session is not None
        return self._reported - self.session.unacknowledged

    def run(self) -> None:
        try:
            self._train()
        except steelyard.SteelyardError as error:
            if not self.over:
                self.error = str(error)
                self._started.release()

    def _train(self) -> None:
        args = self._args
        run = steelyard.connect(args.address).run(args.run)
        self.session = run.join(self._rank, args.world_size, attempt="benchmark", timeout=60)
        losses = np.random.default_rng(self._rank).random(self.session.batch_size, np.float32)
        for batch in self.session:
            if self.over:
                return
            self.taken.append(time.monotonic())
            self.session.report(batch, losses[: len(batch)])
            self._reported += 1
            if self._reported == _FIRST_STEPS:
                self._started.release()


def main() -> None:
    parser = parent.parser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--world-size", type=int, required=True)
    parser.add_argument("--first-rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    args = parser.parse_args()
    parent.live_for(args.life)
    started = threading.Semaphore(0)
    ranks = [Rank(args, args.first_rank + at, started) for at in range(args.ranks)]
    threads = [threading.Thread(target=rank.run, daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    for _ in ranks:
        started.acquire()
    errors = [rank.error for rank in ranks if rank.error]
    if errors:
        raise SystemExit(f"{len(errors)} ranks failed, the first: {errors[0]}")
    parent.say("ready")
    start, stop = parent.hear_window()
    time.sleep(max(0.0, start - time.monotonic()))
    before, cpu = [rank.durable for rank in ranks], time.process_time()
    time.sleep(max(0.0, stop - time.monotonic()))
    made = [rank.durable - already for rank, already in zip(ranks, before, strict=True)]
    cpu = time.process_time() - cpu
    for rank in ranks:
        rank.over = True
    for rank in ranks:
        if rank.session is not None:
            rank.session.close()
    for thread in threads:
        thread.join(10)
    errors = [rank.error for rank in ranks if rank.error]
    taken = [[at for at in rank.taken if start <= at < stop] for rank in ranks]
    parent.say(
        {
            "steps": sum(made),
            "least": min(made),
            "most": max(made),
            "cpu": cpu,
            "between": [between(times, 1) for times in taken],
            "rounds": [between(times, ROUND) for times in taken],
            "errors": errors,
        }
    )


def between(times: list[float], batches: int) -> tuple[float, float]:
    """Median and 99th percentile of the seconds from a batch to the one so many later; no end where there is none."""
    gaps = np.subtract(times[batches:], times[:-batches])
    if not len(gaps):
        return float("inf"), float("inf")
    return float(np.median(gaps)), float(np.quantile(gaps, 0.99))


if __name__ == "__main__":
    main()
