"""Draws with columns of their own: servers killed between two refreshes and at one, runs taken back and forked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelyard.testing import ServerProcess

SIZE, BATCH = 200, 16
STEPS = 20

DRAWS: dict[str, dict[str, Any]] = {
    "refreshed": {"method": "rank_based", "refresh_steps": 6, "decay_steps": 50},
    "refreshed, and told of reports": {"method": "grad_norm_mix", "refresh_steps": 6, "total_epochs": 3},
    "told of reports": {"method": "loss_history"},
    "of how often each was drawn": {"method": "utility_decay", "bucket": None, "half_lives": [1.5]},
    "from a pool": {"method": "candidate_pool", "pool": 3, "r": 0.4},
}


def train(session: Any, until: int, before_step: Any = None) -> dict[int, tuple[list[int], list[float]]]:
    """What was served at each step: ids and probabilities."""
    seen: dict[int, tuple[list[int], list[float]]] = {}
    while not seen or max(seen) < until - 1:
        batch = session.next(timeout=30)
        if before_step is not None:
            before_step(batch.step)
        losses = ((batch.ids * 7 + batch.step * 13) % 101 / 50).astype(np.float32)
        session.report(batch, losses, signals={"grad_norm": losses**2}, timeout=30)
        seen[batch.step] = batch.ids.tolist(), batch.probability.tolist()
    return seen


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_kills_and_ways_back_across_a_refresh_change_no_batch(draw: dict[str, Any], tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"dataset": "d", "batch_size": BATCH, "staleness": 1, "draw": draw}
    with ServerProcess(tmp_path, checkpoint_interval_seconds=0.2) as process:
        process.client().create_dataset("d", SIZE)
        with process.client().create_run("calm", **arguments).join() as session:
            expected = train(session, STEPS)
        assert len({tuple(ids) for ids, _ in expected.values()}) == STEPS
        run = process.client().create_run("r", **arguments)

        def kill_sometimes(step: int) -> None:
            # Between two refreshes, and where the next draw is that of a refresh.
            if step in (8, 11):
                process.kill()
                process.start()

        with run.join(prefetch=1) as session:
            assert train(session, STEPS, kill_sometimes) == expected
        for step in (12, 5):
            run.rewind(step)
            with run.join(start_step=step) as session:
                assert train(session, STEPS) == {at: expected[at] for at in range(step, STEPS)}
        with run.fork("beside", step=7).join() as session:
            assert train(session, STEPS) == {at: expected[at] for at in range(7, STEPS)}
