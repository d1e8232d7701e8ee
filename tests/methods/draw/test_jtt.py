"""Just Train Twice: copies of the errors, and a worst group that gains by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.core.events import IdsRetired
from steelyard_server.policies.draw.jtt import Jtt
from steelyard_server.policies.draw.rows import Moment, Rows

NOW = Moment(0, 0, 7)
NAN = float("nan")


def test_errors_have_so_many_copies_more_and_the_unreported_one(rows_of: Callable[..., Rows]) -> None:
    rows = rows_of(last_correct=[1, 0, NAN, 0.4, 0.5])
    kept = Jtt(up_weight=20).judge(rows, NOW)
    assert kept.mask.all()
    assert kept.copies is not None
    assert kept.copies.tolist() == [1, 21, 1, 21, 1]


def test_balance_gives_errors_as_many_places_as_the_others(rows_of: Callable[..., Rows]) -> None:
    kept = Jtt(up_weight=-1).judge(rows_of(last_correct=[0] * 10 + [1] * 95, retired=[0, 1]), NOW)
    assert kept.copies is not None
    assert kept.copies[2:10].tolist() == [11] * 8
    none = Jtt(up_weight=-1).judge(rows_of(last_correct=[1, 1, 1]), NOW)
    assert none.copies is not None
    assert none.copies.tolist() == [1, 1, 1]
    mostly = Jtt(up_weight=-1).judge(rows_of(last_correct=[0, 0, 1]), NOW)
    assert mostly.copies is not None
    assert mostly.copies.tolist() == [1, 1, 1]


def test_a_run_repeats_the_errors_of_its_first_epochs_and_holds_to_them(life: Any) -> None:
    run = life({"method": "jtt", "up_weight": 3, "after_epochs": 2}, 8, 4)
    for _ in range(4):
        drawn = run.draw()
        run.report(drawn, correct=drawn.ids >= 2)
    expected = Counter({0: 4, 1: 4} | dict.fromkeys(range(2, 8), 1))
    batches = []
    for _ in range(7):
        drawn = run.draw()
        run.report(drawn, correct=drawn.ids < 2)
        batches.append(drawn.ids)
        assert drawn.probability is not None
        assert drawn.probability.tolist() == [(4 if i < 2 else 1) / 14 for i in drawn.ids]
    stream = np.concatenate(batches).tolist()
    assert Counter(stream[:14]) == Counter(stream[14:]) == expected


def test_an_uploaded_error_set_needs_no_first_epochs(life: Any) -> None:
    run = life({"method": "jtt", "up_weight": 2, "errors": "wrong"}, 4, 6, columns={"wrong": [0, 1, 0, 0]})
    assert Counter(run.draw().ids.tolist()) == Counter({0: 1, 1: 3, 2: 1, 3: 1})
    assert not run.state.reads_reports


def worst_group(life: Any, logistic: Any, up_weight: int) -> tuple[float, float]:
    """The accuracy on the worst group, and on average, of a second model trained by JTT."""
    rng = np.random.default_rng(11)
    size = 800
    labels = np.where(rng.random(size) < 0.5, 1.0, -1.0)
    # A sign that agrees with the label for 95 of 100 and is clear; the label itself is seen with noise.
    agrees = rng.random(size) < 0.95
    sign = np.where(agrees, labels, -labels)
    features = np.c_[labels + rng.normal(0, 0.7, size), 2 * sign + rng.normal(0, 0.1, size)]
    run = life({"method": "jtt", "up_weight": up_weight, "after_epochs": 1}, size, 40)
    model = logistic(features, labels)
    for step in range(320):
        drawn = run.draw()
        if step == 20:
            model = logistic(features, labels)
        run.report(drawn, correct=model.correct(drawn.ids))
        model.step(drawn.ids)
    right = model.correct(np.arange(size))
    return min(right[agrees].mean(), right[~agrees].mean()), right.mean()


def test_the_worst_group_gains_by_the_second_training_and_not_without_the_copies(
    life: Any, logistic: Any
) -> None:
    plain, plain_mean = worst_group(life, logistic, 0)
    worst, mean = worst_group(life, logistic, 20)
    assert worst > plain + 0.2
    # What it costs the others, as the paper has it: little.
    assert mean > plain_mean - 0.05


@pytest.mark.parametrize("bad", [{"up_weight": -2}, {"after_epochs": 0}, {"signal": ""}, {"errors": ""}])
def test_parameters_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Jtt.parse(bad)


def test_the_error_set_stays_as_it_was_when_all_of_it_is_retired(life: Callable[..., Any]) -> None:
    run = life({"method": "jtt", "up_weight": 3}, 40, 10)
    for _ in range(4):
        drawn = run.draw()
        run.report(drawn, correct=drawn.ids >= 5)
    for _ in range(6):
        run.report(run.draw(), correct=np.ones(10))
    run.state.apply(IdsRetired(np.arange(5)))
    # The second model is wrong about everything, which is nobody's business any more.
    for _ in range(9):
        drawn = run.draw()
        run.report(drawn, correct=np.zeros(10))
    assert drawn.probability is None
    assert (run.column("own:copies")[5:] == 1).all()
