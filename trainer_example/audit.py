"""Proves from the server's own record that nothing was lost: every example in its turn, every loss where it belongs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import steelyard

HISTORY_SIZE = 8  # (step, loss) that a run remembers of each example, unless it was told otherwise


@dataclass(frozen=True)
class Audit:
    """What a run served and took back in its first steps."""

    batches: int
    losses_lost: int
    """Losses of those batches that the server does not have."""
    faults: tuple[str, ...]
    """What is not as it was promised, in words; empty when all is."""
    step_losses: npt.NDArray[np.float64]
    """Mean unweighed loss of each batch: float64[steps]."""
    last_losses: npt.NDArray[np.float64]
    """The newest loss of each example of the second half of the steps: float64[n]. Older ones are another model's."""


def audit(run: steelyard.Run, steps: int) -> Audit:
    """Compares the batches, the counters and the memory of a run that was trained for `steps` steps and shuffles."""
    info, stats = run.info(), run.stats()
    batches = np.stack([run.batch(step).ids for step in range(steps)])
    history = run.history(np.arange(info.dataset_size))
    remembered = {(step, i): loss for i, pairs in enumerate(history) for step, loss in pairs if step < steps}
    reported = {(step, int(i)) for step, batch in enumerate(batches) for i in batch}

    faults = out_of_turn(batches, info.dataset_size)
    faults += [
        f"step {step} has a loss of id {i}, which it did not serve"
        for step, i in remembered.keys() - reported
    ]
    faults += [f"expected no {name}, got {n}" for name, n in trouble(stats).items() if n]
    missing = reported - forgotten(batches) - remembered.keys()
    lost = max(len(missing), steps * info.batch_size - stats.reported_losses)

    sums = np.zeros(steps)
    for (step, _), loss in remembered.items():
        sums[step] += loss
    counts = np.bincount([step for step, _ in remembered], minlength=steps)
    last = np.array([pairs[-1][1] for pairs in history if pairs and pairs[-1][0] >= steps // 2])
    return Audit(len(batches), lost, tuple(faults), sums / np.maximum(counts, 1), last)


def out_of_turn(batches: npt.NDArray[np.int64], examples: int) -> list[str]:
    """What breaks the promise of a shuffle in the batches int64[steps, B]: every id exactly once an epoch."""
    faults = []
    served = batches.ravel()
    for epoch, first in enumerate(range(0, len(served), examples)):
        ids = served[first : first + examples]
        repeated = len(ids) - len(np.unique(ids))
        if repeated:
            faults.append(f"epoch {epoch} serves {repeated} of its {len(ids)} ids more than once")
        strangers = int(np.count_nonzero((ids < 0) | (ids >= examples)))
        if strangers:
            faults.append(f"epoch {epoch} serves {strangers} ids that the dataset does not have")
    return faults


def forgotten(batches: npt.NDArray[np.int64]) -> set[tuple[int, int]]:
    """The (step, id) that a run has rightly forgotten, because the id has been served HISTORY_SIZE times since."""
    seen: Counter[int] = Counter()
    old = set()
    for step in range(len(batches) - 1, -1, -1):
        for i in batches[step].tolist():
            seen[i] += 1
            if seen[i] > HISTORY_SIZE:
                old.add((step, i))
    return old


def trouble(stats: steelyard.Stats) -> dict[str, int]:
    """Counters that stand at zero in a training where nothing went wrong. Duplicates do not: a report that was sent
    again after a reconnect, because its acknowledgement was lost, is one."""
    return {
        "late reports": stats.late_reports,
        "refused reports": stats.refused_reports,
        "non-finite losses": stats.nonfinite_losses,
        "steps closed by timeout": stats.closed_by_timeout,
    }
