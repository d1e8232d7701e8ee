"""Curricula: easy to hard, hard to easy, noisy orders, and a window that opens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.draw.curriculum import Curriculum
from steelyard_server.policies.draw.rows import Moment, Rows
from steelyard_server.policies.policy import PolicyError, parse_policy

NAN = float("nan")


def served(life: Any, steps: int, **config: Any) -> list[Any]:
    rng = np.random.default_rng(1)
    difficulty = rng.normal(size=100).astype(np.float32)
    run = life({"method": "curriculum", **config}, 100, 10, columns={"difficulty": difficulty})
    return [difficulty[run.draw().ids] for _ in range(steps)]


def test_an_epoch_goes_from_easy_to_hard_or_back(life: Any) -> None:
    for order, sign in (("easy_to_hard", 1), ("hard_to_easy", -1)):
        batches = served(life, 20, order=order)
        for epoch in (batches[:10], batches[10:]):
            edges = [sign * edge for batch in epoch for edge in sorted(batch, key=lambda x: sign * x)]
            assert edges == sorted(edges), order
            assert len(set(np.concatenate(epoch).tolist())) == 100


def test_a_window_opens_from_the_easy_side_at_its_pace(life: Any) -> None:
    order = np.sort(np.concatenate(served(life, 10)))
    batches = served(life, 60, order="window", start=0.2, pace_steps=40)
    for step, batch in enumerate(batches):
        window = int(np.ceil(round(min(1.0, 0.2 + 0.8 * step / 40) * 100, 9)))
        assert batch.max() <= order[window - 1]
    means = [np.mean(batches[at : at + 10]) for at in (0, 20, 40)]
    assert means[0] < means[1] < means[2]
    # Where all are open, the hardest come too; in an order they would not in a mere tenth of the steps.
    assert np.concatenate(batches[45:]).max() >= order[-3]


def test_noise_bends_the_order_as_much_as_it_is_great(life: Any) -> None:
    def rank_correlation(noise: float) -> float:
        batches = np.concatenate(served(life, 10, noise=noise))
        ranks = np.argsort(np.argsort(batches))
        return float(np.corrcoef(ranks, np.arange(100))[0, 1])

    assert rank_correlation(0.0) > 0.98
    assert 0.5 < rank_correlation(0.5) < 0.97
    assert abs(rank_correlation(1000.0)) < 0.4


def test_noise_is_new_at_each_epoch_and_the_same_at_each_call(rows_of: Callable[..., Rows]) -> None:
    rows, draw = rows_of(difficulty=[1, 2, 3]), Curriculum(noise=1.0)
    first = draw.keys(rows, Moment(0, 0, 1))
    assert first.tolist() == draw.keys(rows, Moment(0, 0, 1)).tolist()
    assert first.tolist() != draw.keys(rows, Moment(9, 1, 1)).tolist()


def test_a_learner_that_needs_the_easy_ones_first_learns_by_the_order_and_not_by_its_opposite(
    life: Any,
) -> None:
    # A learner that gains from an example only when it is within reach, as curricula suppose.
    def skill(**config: Any) -> float:
        reach = -2.0
        for batch in served(life, 10, **config):
            for difficulty in np.sort(batch):
                if difficulty <= reach + 0.7:
                    reach = max(reach, float(difficulty))
        return reach

    assert skill() > 1.2
    assert skill(order="hard_to_easy") < skill() - 1


def test_what_has_no_difficulty_comes_last(life: Any) -> None:
    for order in ("easy_to_hard", "hard_to_easy"):
        draw = {"method": "curriculum", "order": order}
        run = life(draw, 6, 2, columns={"difficulty": [NAN, 1, 2, NAN, 3, 4]})
        batches = [sorted(run.draw().ids.tolist()) for _ in range(3)]
        assert batches[2] == [0, 3]


def test_a_reported_difficulty_counts_from_the_next_epoch_on(life: Any) -> None:
    run = life({"method": "curriculum", "difficulty": "mean_loss"}, 6, 3)
    for _ in range(2):
        drawn = run.draw()
        run.report(drawn, loss=-drawn.ids.astype(float))
    assert [sorted(run.draw().ids.tolist()) for _ in range(2)] == [[3, 4, 5], [0, 1, 2]]


def test_losses_are_not_ordered_by_and_weighed_by_at_once() -> None:
    with pytest.raises(PolicyError, match="the draw reads mean_loss and the weigher reads the losses again"):
        parse_policy({"method": "curriculum", "difficulty": "mean_loss"}, {"method": "linupper"})


@pytest.mark.parametrize("bad", [{"order": "sideways"}, {"noise": -1}, {"start": 1.5}, {"pace_steps": 0}])
def test_parameters_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Curriculum.parse(bad)
