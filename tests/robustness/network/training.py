"""A training that is compared with the same one in peace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import steelyard

WAIT = 60.0
STALENESS = 3
AHEAD = STALENESS + 1
"""Batches that are drawn behind the last one reported; the last of them is drawn from every report."""
SCORED = {"method": "scored", "score": "last_loss", "floor": 0.1}


def losses_of(ids: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.float32]:
    return ((ids * 7 + step * 13) % 101 / 50 + 0.1).astype(np.float32)


@dataclass(frozen=True)
class Course:
    """One kind of run, and what it does where nothing disturbs it. Its draws read the losses reported."""

    client: steelyard.Client
    dataset: str
    size: int
    batch_size: int
    steps: int
    digests: tuple[int, ...]
    calm: steelyard.Run

    @classmethod
    def of(cls, client: steelyard.Client, *, size: int, batch_size: int, steps: int) -> Course:
        name = f"d{size}-{batch_size}-{steps}"
        client.create_dataset(name, size)
        calm = _create(client, f"calm-{name}", name, batch_size)
        with calm.join() as session:
            digests = tuple(train(session, steps))
        return cls(client, name, size, batch_size, steps, digests, calm)

    def run(self, name: str) -> steelyard.Run:
        """A run of this kind at its beginning, over the undisturbed connection."""
        return _create(self.client, name, self.dataset, self.batch_size)

    def through(self, address: str, name: str, disturb: Callable[[int], Any]) -> steelyard.Run:
        """Plays the course over `address`, calling `disturb(step)` between a batch and its report, and compares."""
        self.run(name)
        with steelyard.connect(address) as client, client.run(name).join(timeout=WAIT) as session:
            came = tuple(train(session, self.steps, disturb))
        assert came == self.digests, f"run {name}: other batches came than in peace"
        run = self.client.run(name)
        self.compare(run)
        return run

    def compare(self, run: steelyard.Run) -> None:
        """Every loss is folded exactly once: what the run knows is what the undisturbed one knows."""
        stats = run.stats()
        assert stats.reported_losses == self.steps * self.batch_size
        assert (stats.late_reports, stats.refused_reports) == (0, 0)
        np.testing.assert_array_equal(run.column("last_loss"), self.calm.column("last_loss"))
        ids = np.arange(self.size)
        assert run.history(ids) == self.calm.history(ids)


def train(
    session: steelyard.Session, steps: int, disturb: Callable[[int], Any] = lambda step: None
) -> Iterator[int]:
    """Takes and reports `steps` batches, and takes those that can follow; the digests of all."""
    for _ in range(steps):
        batch = session.next(timeout=WAIT)
        disturb(batch.step)
        session.report_async(batch, losses_of(batch.ids, batch.step))
        yield batch.digest
    session.flush(timeout=WAIT)
    for _ in range(AHEAD):
        yield session.next(timeout=WAIT).digest


def _create(client: steelyard.Client, name: str, dataset: str, batch_size: int) -> steelyard.Run:
    return client.create_run(
        name, dataset=dataset, batch_size=batch_size, seed=11, staleness=STALENESS, draw=SCORED
    )
