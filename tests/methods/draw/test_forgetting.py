"""Forgetting: the authors' counts and order, the run that folds them, and planted wrong labels that it finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw.engines.choice import ascending
from steelyard_server.policies.draw.forgetting import Forgetting
from steelyard_server.policies.draw.rows import Moment, Rows

NOW = Moment(0, 0, 7)
ANSWERS = ["1111", "0101", "0000", "1010"]
NAN = float("nan")


def told(rows_of: Callable[..., Rows], answers: list[str]) -> Rows:
    """Rows after these answers, each digit one presentation."""
    derived = Derived("forgotten", "correct")
    columns = {name: np.full(len(answers), np.nan, np.float32) for name in derived.columns}
    for example, word in enumerate(answers):
        values = np.array([float(digit) for digit in word], np.float32)
        derived.fold(columns, np.full(len(word), example), values)
    return rows_of(**columns)


def test_counts_and_order_are_the_authors(golden: Callable[[str], Any], rows_of: Callable[..., Rows]) -> None:
    expected = golden("forgetting/acc 1111,0101,0000,1010")
    rows = told(rows_of, ANSWERS)
    counts = Forgetting().counts(rows)
    order = ascending(counts, rows.live, NOW)
    assert order.tolist() == expected["order"]
    assert counts[order].tolist() == expected["counts"]


def test_what_was_never_learned_may_count_for_more_than_any_other(rows_of: Callable[..., Rows]) -> None:
    rows = told(rows_of, ["0", "10101010", "1"])
    assert Forgetting().counts(rows).tolist() == [1, 4, 0]
    infinite = Forgetting(never_learned="infinite", keep_share=0.34)
    assert infinite.counts(rows).tolist() == [np.inf, 4, 0]
    assert infinite.judge(rows, NOW).mask.tolist() == [True, False, False]
    assert Forgetting(keep_share=0.34).judge(rows, NOW).mask.tolist() == [False, True, False]


def test_a_share_is_kept_or_the_least_forgotten_are_dropped_and_the_unseen_stay(
    rows_of: Callable[..., Rows],
) -> None:
    rows = told(rows_of, [*ANSWERS, ""])
    assert Forgetting(keep_share=0.5).judge(rows, NOW).mask.tolist() == [False, False, True, True, True]
    assert Forgetting(drop_up_to=0).judge(rows, NOW).mask.tolist() == [False, True, True, True, True]
    assert Forgetting(drop_up_to=1).judge(rows, NOW).mask.tolist() == [False, False, True, True, True]
    assert Forgetting(keep_share=1.0).judge(rows, NOW).mask.all()


def test_equal_counts_are_cut_by_lot(rows_of: Callable[..., Rows]) -> None:
    rows = told(rows_of, ["1"] * 40)
    masks = {tuple(Forgetting().judge(rows, Moment(0, 0, seed)).mask.tolist()) for seed in range(20)}
    assert len(masks) == 20
    assert {sum(mask) for mask in masks} == {20}


def test_a_run_finds_planted_wrong_labels_and_goes_on_with_them(life: Any, logistic: Any) -> None:
    rng = np.random.default_rng(4)
    size, planted = 400, 40
    labels = np.where(np.arange(size) % 2, 1.0, -1.0)
    features = np.c_[labels[:, None] + rng.normal(0, 0.5, (size, 2)), np.ones(size)]
    wrong = rng.permutation(size)[:planted]
    labels[wrong] *= -1
    model = logistic(features, labels)
    run = life({"method": "forgetting", "keep_share": 0.1, "after_epochs": 6}, size, 20)
    for step in range(6 * 20 + 1):
        drawn = run.draw()
        if step < 120:
            run.report(drawn, correct=model.correct(drawn.ids))
            model.step(drawn.ids)
    kept = np.flatnonzero(run.column("own:copies") == 1)
    assert len(kept) == planted
    assert set(drawn.ids.tolist()) <= set(kept.tolist())
    assert len(np.intersect1d(kept, wrong)) >= 0.8 * planted
    # The other end of the same ranking, and a ranking by presentations alone, find none.
    counts = Forgetting().counts(Rows(size, np.empty(0, np.int64), run.state.examples.columns))
    least = np.argsort(counts, kind="stable")[:planted]
    assert len(np.intersect1d(least, wrong)) == 0


def test_the_choice_is_made_once_and_what_is_appended_later_comes_too(life: Any) -> None:
    run = life({"method": "forgetting", "keep_share": 0.5, "after_epochs": 1}, 8, 4)
    for _ in range(2):
        drawn = run.draw()
        run.report(drawn, correct=drawn.ids < 4)
    first = sorted(run.draw().ids.tolist())
    assert first == [4, 5, 6, 7]
    for step in range(3):
        run.observe([0, 1, 2, 3], correct=[step % 2] * 4)
    run.grow(10)
    later = [run.draw() for _ in range(3)]
    assert sorted(np.concatenate([drawn.ids for drawn in later]).tolist()) == sorted([4, 5, 6, 7, 8, 9] * 2)


def test_it_reads_the_signal_that_it_is_told() -> None:
    draw = Forgetting(signal="hit")
    assert [one.columns for one in draw.derived] == [("forgotten_hit", "learned_hit", "count_hit")]
    assert draw.reads_reports


@pytest.mark.parametrize(
    "bad",
    [
        {"keep_share": 0},
        {"keep_share": 1.1},
        {"after_epochs": -1},
        {"never_learned": "max"},
        {"drop_up_to": -1},
    ],
)
def test_parameters_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Forgetting.parse(bad)
