"""Draws that choose their epochs: a server killed in the middle of one, and runs taken back across a choice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard.testing import ServerProcess

SIZE, BATCH = 120, 16
STEPS = 30
"""Some four epochs."""

POLICIES: dict[str, dict[str, Any]] = {
    "a subset with weights": {"draw": {"method": "infobatch"}, "weigh": {"method": "infobatch_rescale"}},
    "an order": {"draw": {"method": "curriculum", "difficulty": "mean_loss"}},
}


def report(session: Any, batch: Any) -> Any:
    losses = ((batch.ids * 7 + batch.step * 13) % 101 / 50).astype(np.float32)
    correct = (batch.ids + batch.step) % 5 > 0
    return session.report(batch, losses, signals={"correct": correct}, timeout=30)


def train(
    session: Any, until: int, before_step: Any = None
) -> dict[int, tuple[list[int], list[float], list[float]]]:
    """What was served at each step: ids, probabilities and weights."""
    seen: dict[int, tuple[list[int], list[float], list[float]]] = {}
    while not seen or max(seen) < until - 1:
        batch = session.next(timeout=30)
        if before_step is not None:
            before_step(batch.step)
        weights = report(session, batch)
        seen[batch.step] = batch.ids.tolist(), batch.probability.tolist(), weights.tolist()
    return seen


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_kill_in_an_epoch_and_a_way_back_across_its_choice_change_no_batch(
    policy: dict[str, Any], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"dataset": "d", "batch_size": BATCH, "staleness": 2, **policy}

    with ServerProcess(tmp_path, checkpoint_interval_seconds=0.2) as process:
        process.client().create_dataset("d", SIZE)
        with process.client().create_run("calm", **arguments).join() as session:
            expected = train(session, STEPS)
        run = process.client().create_run("r", **arguments)

        def kill_sometimes(step: int) -> None:
            if step in (4, 18):
                process.kill()
                process.start()

        with run.join() as session:
            seen = train(session, STEPS, kill_sometimes)
        assert seen == expected
        # The first epoch ends in step 7, the second in step 14 or before.
        for step in (13, 5):
            run.rewind(step)
            with run.join(start_step=step) as session:
                assert train(session, STEPS) == {at: expected[at] for at in range(step, STEPS)}
        forked = run.fork("beside", step=6)
        with forked.join() as session:
            assert train(session, STEPS) == {at: expected[at] for at in range(6, STEPS)}


def test_the_weights_of_infobatch_reach_the_trainer_and_make_good_for_what_it_leaves_out(
    tmp_path: Path,
) -> None:
    with steelyard.local(tmp_path) as client:
        client.create_dataset("d", 64)
        run = client.create_run(
            "r", dataset="d", batch_size=16, staleness=0, **POLICIES["a subset with weights"]
        )
        with run.join() as session:
            for _ in range(4):
                batch = session.next()
                assert session.report(batch, np.where(batch.ids < 40, 0.1, 2.0)).tolist() == [1.0] * 16
            served: Counter[float] = Counter()
            total, epoch = 0.0, 0
            while epoch < 44:
                batch = session.next()
                weights = session.report(batch, np.where(batch.ids < 40, 0.1, 2.0))
                rest = min(16, 44 - epoch)
                assert (weights == np.where(batch.ids < 40, 2.0, 1.0)).all()
                served.update(weights[:rest].tolist())
                total, epoch = total + float(weights[:rest].sum()), epoch + 16
        assert served == {2.0: 20, 1.0: 24}
        assert total == 64


def test_a_run_changes_to_a_chosen_epoch_and_back_at_an_exact_step(tmp_path: Path) -> None:
    with steelyard.local(tmp_path) as client:
        client.create_dataset("d", 40)
        run = client.create_run("r", dataset="d", batch_size=8, staleness=0)
        client.set_column("d", "difficulty", np.arange(40))
        with run.join(prefetch=1) as session:
            for _ in range(3):
                session.report(session.next(), np.ones(8))
            run.change_policy(draw={"method": "curriculum"})
            batches = []
            for _ in range(8):
                batch = session.next()
                batches.append(sorted(batch.ids.tolist()))
                session.report(batch, np.ones(8))
        # Those drawn ahead of the change were shuffled.
        start = next(at for at, ids in enumerate(batches) if ids == list(range(8)))
        assert batches[start : start + 5] == [list(range(at, at + 8)) for at in range(0, 40, 8)]
