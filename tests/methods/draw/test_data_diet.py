"""Data Diet: EL2N as the authors' code gives it, what is kept, and the window that drops the noisy tail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard.signals import el2n
from steelyard_server.core.events import IdsRetired
from steelyard_server.policies.draw.data_diet import DataDiet
from steelyard_server.policies.draw.rows import Moment, Rows

NOW = Moment(0, 0, 7)
NAN = float("nan")


def kept(draw: DataDiet, rows: Rows) -> list[int]:
    return np.flatnonzero(draw.judge(rows, NOW).mask).tolist()


def test_el2n_is_the_authors(golden: Callable[[str], Any]) -> None:
    expected = golden("el2n/p=(.7,.2,.1),(.1,.1,.8) label 0")
    np.testing.assert_allclose(el2n([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [0, 0]), expected, atol=5e-7)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([0.5, 0.5], [0], r"expected probabilities \[n, classes\] and labels \[n\], got \[2\] and \[1\]"),
        ([[0.5, 0.5]], [0, 1], r"got \[1, 2\] and \[2\]"),
        ([[0.5, 0.5]], [2], r"expected labels in 0\.\.1, got 2\.\.2"),
    ],
)
def test_el2n_of_what_does_not_fit_is_refused(probabilities: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        el2n(probabilities, labels)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"k": 2}, [3, 4]),
        ({"k": 2, "by": "smallest"}, [0, 1]),
        ({"k": 2, "by": "absolute"}, [0, 4]),
        ({"k": 2, "offset": 1}, [1, 2]),
        ({"k": 2, "offset": 0}, [0, 1]),
        ({"k": 2, "offset": 9}, [3, 4]),
        ({"keep_share": 0.5}, [3, 4]),
        ({"keep_share": 0.01}, [4]),
        ({"k": 99}, [0, 1, 2, 3, 4]),
    ],
)
def test_the_top_the_bottom_or_a_window_of_the_ranking_is_kept(
    config: dict[str, Any], expected: list[int], rows_of: Callable[..., Rows]
) -> None:
    rows = rows_of(mean_el2n=[-4, 1, 2, 3, 5, NAN])
    # What has no score is kept besides.
    assert kept(DataDiet(**config), rows) == [*expected, 5]


def test_the_retired_take_no_place_in_the_ranking(rows_of: Callable[..., Rows]) -> None:
    rows = rows_of(mean_el2n=[1, 2, 3, 4], retired=[3])
    assert kept(DataDiet(k=1), rows) == [2]


def test_the_window_drops_the_noisy_tail_and_the_top_is_that_tail(
    rows_of: Callable[..., Rows], logistic: Any
) -> None:
    rng = np.random.default_rng(2)
    size, noisy = 500, 50
    labels = np.where(np.arange(size) % 2, 1.0, -1.0)
    features = np.c_[
        labels[:, None] * rng.uniform(0.05, 2, (size, 1)) + rng.normal(0, 0.2, (size, 3)), np.ones(size)
    ]
    wrong = rng.permutation(size)[:noisy]
    labels[wrong] *= -1
    scores = np.zeros(size)
    for _ in range(4):
        # Early in training, and the mean of a few runs.
        model = logistic(features, labels)
        for _ in range(30):
            model.step(rng.permutation(size)[:50])
        scores += el2n(model.chances(np.arange(size)), (labels > 0).astype(int)) / 4
    rows = rows_of(mean_el2n=scores)
    top = kept(DataDiet(k=60), rows)
    window = kept(DataDiet(k=250, offset=150), rows)
    assert len(np.intersect1d(top, wrong)) >= 0.8 * noisy
    assert len(np.intersect1d(window, wrong)) <= 0.15 * noisy
    # Nor are they the easy ones: the model is less sure of them than of what lies below the window.
    easy = np.setdiff1d(np.argsort(scores)[:150], wrong)
    assert scores[window].mean() > 2 * scores[easy].mean()
    # The top of as many would have nearly all of the noise.
    assert len(np.intersect1d(kept(DataDiet(k=250), rows), wrong)) >= 0.9 * noisy


def test_reported_scores_are_judged_once_after_so_many_epochs_of_all(life: Any) -> None:
    run = life({"method": "data_diet", "k": 4, "after_epochs": 2}, 10, 5)
    for _ in range(4):
        drawn = run.draw()
        run.report(drawn, el2n=drawn.ids)
    served = [run.draw() for _ in range(4)]
    assert sorted(np.concatenate([drawn.ids for drawn in served]).tolist()) == sorted([6, 7, 8, 9] * 5)
    assert served[0].uniform_probability == 1 / 4
    for drawn in served:
        run.report(drawn, el2n=-drawn.ids.astype(float))
    assert set(run.draw().ids.tolist()) <= {6, 7, 8, 9}


def test_uploaded_scores_are_judged_at_each_epoch_anew(life: Any) -> None:
    run = life({"method": "data_diet", "score": "hard", "k": 2}, 6, 2, columns={"hard": range(6)})
    assert sorted(run.draw().ids.tolist()) == [4, 5]
    run.set("hard", [9, 8, 0, 0, 0, 0])
    assert sorted(run.draw().ids.tolist()) == [0, 1]
    run.grow(8)
    assert sorted(np.concatenate([run.draw().ids for _ in range(2)]).tolist()) == [0, 1, 6, 7]


def test_scores_that_never_come_leave_all_examples_in(life: Any) -> None:
    run = life({"method": "data_diet", "after_epochs": 0}, 6, 6)
    for _ in range(3):
        drawn = run.draw()
        assert sorted(drawn.ids.tolist()) == [0, 1, 2, 3, 4, 5]
        run.report(drawn)


@pytest.mark.parametrize(
    "bad",
    [{"keep_share": 0}, {"k": 0}, {"offset": -1}, {"by": "loudest"}, {"score": ""}, {"after_epochs": -1}],
)
def test_parameters_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DataDiet.parse(bad)


def test_what_was_kept_is_not_judged_again_when_all_that_was_left_out_is_retired(
    life: Callable[..., Any],
) -> None:
    run = life({"method": "data_diet", "after_epochs": 1}, 40, 10)
    for _ in range(6):
        drawn = run.draw()
        run.report(drawn, el2n=drawn.ids)
    run.state.apply(IdsRetired(np.arange(20)))
    served = []
    for _ in range(8):
        drawn = run.draw()
        run.report(drawn, el2n=drawn.ids)
        served.append(drawn.ids)
    assert sorted(np.unique(np.concatenate(served[-2:]))) == list(range(20, 40))
