from pathlib import Path

import numpy as np
import pytest
from audit import HISTORY_SIZE, audit, forgotten, out_of_turn

import steelyard
import steelyard.testing


def train(run: steelyard.Run, steps: int, *, silent_at: int | None = None) -> None:
    """Reports the step number as the loss of each example, for every step but one."""
    with run.join() as session:
        for _ in range(steps):
            batch = session.next()
            if batch.step != silent_at:
                session.report(batch, np.full(len(batch), batch.step, np.float32))


@pytest.mark.parametrize("steps", [5, 40])  # 40 steps are ten epochs: more than a history holds
def test_a_training_that_lost_nothing_passes(tmp_path: Path, steps: int) -> None:
    with steelyard.testing.server(tmp_path) as client:
        client.create_dataset("d", size=33)
        run = client.create_run("r", dataset="d", batch_size=8)
        train(run, steps)
        found = audit(run, steps)
        late = {int(i) for step in range(steps // 2, steps) for i in run.batch(step).ids}
    assert (found.batches, found.losses_lost, found.faults) == (steps, 0, ())
    newest = np.arange(max(steps - 8, 0), steps)
    assert np.array_equal(found.step_losses[newest], newest)
    assert len(found.last_losses) == len(late)


def test_losses_that_never_came_are_counted(tmp_path: Path) -> None:
    with steelyard.testing.server(tmp_path) as client:
        client.create_dataset("d", size=33)
        run = client.create_run("r", dataset="d", batch_size=8)
        train(run, 6, silent_at=3)
        assert audit(run, 6).losses_lost == 8


def test_ids_out_of_turn_are_seen() -> None:
    good = np.array([[0, 1, 2], [3, 4, 1], [0, 2, 4], [3, 2, 1]])  # epochs of five ids
    assert out_of_turn(good, 5) == []
    twice = good.copy()
    twice[1, 0] = 0
    assert out_of_turn(twice, 5) == ["epoch 0 serves 1 of its 5 ids more than once"]
    stranger = good.copy()
    stranger[3, 2] = 5
    assert out_of_turn(stranger, 5) == ["epoch 2 serves 1 ids that the dataset does not have"]


def test_only_what_a_history_has_no_room_for_may_be_forgotten() -> None:
    batches = np.zeros((HISTORY_SIZE + 2, 1), np.int64)
    assert forgotten(batches) == {(0, 0), (1, 0)}
