"""AFLite: rounds that leave out the most predictable for good, and planted artefacts that go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.draw.aflite import Aflite
from steelyard_server.policies.draw.engines.subset import COPIES
from steelyard_server.policies.draw.rows import Moment, Rows

NAN = float("nan")


def left_out(draw: Aflite, rows: Rows, epoch: int) -> list[int] | None:
    kept = draw.keep(rows, Moment(epoch, epoch, 7))
    return None if kept is None else np.flatnonzero(~kept.mask).tolist()


def test_a_round_leaves_out_the_most_predictable_above_the_threshold(rows_of: Callable[..., Rows]) -> None:
    rows = rows_of(mean_correct=[0.9, 0.75, 0.74, 1.0, NAN, 0.8], **{COPIES: [NAN] * 6})
    assert left_out(Aflite(k=2), rows, 0) == []
    assert left_out(Aflite(k=2), rows, 1) == [0, 3]
    assert left_out(Aflite(), rows, 1) == [0, 1, 3, 5]
    assert left_out(Aflite(k=3, least=4), rows, 1) == [0, 3]
    assert left_out(Aflite(threshold=0.95), rows, 1) == [3]


def test_what_is_out_stays_out_and_what_was_appended_is_in(rows_of: Callable[..., Rows]) -> None:
    rows = rows_of(mean_correct=[0.9, 0.1, 0.0, 0.0], **{COPIES: [1, 1, 0, NAN]})
    assert left_out(Aflite(), rows, 2) == [0, 2]


def test_rounds_come_so_often_and_end(rows_of: Callable[..., Rows]) -> None:
    rows = rows_of(mean_correct=[0.9, 0.9], **{COPIES: [NAN, NAN]})
    draw = Aflite(every=2, rounds=2, after_epochs=1, k=1)
    assert [left_out(draw, rows, epoch) is None for epoch in range(7)] == [
        *(False, False, True, False),
        *(True, True, True),
    ]


def filtered(life: Any, config: dict[str, Any]) -> tuple[float, float, list[int]]:
    """How much of planted artefacts and of the clean examples is left after some rounds, and how many after each."""
    rng = np.random.default_rng(12)
    size, planted = 400, 200
    labels = np.where(rng.random(size) < 0.5, 1.0, -1.0)
    features = rng.normal(0, 1, (size, 4))
    # The first half gives its label away by one feature; in the other nothing does.
    features[:planted, 0] = labels[:planted] * 1.5 + rng.normal(0, 0.2, planted)
    features[planted:, 0] = 0
    run = life({"method": "aflite", "k": 60, **config}, size, size)
    left, sizes = np.arange(size), []
    for _ in range(6):
        for _ in range(12):
            shuffled = rng.permutation(left)
            train, held = np.split(shuffled, [len(left) // 2])
            solution = np.linalg.lstsq(features[train], labels[train], rcond=None)[0]
            run.observe(held, correct=labels[held] * (features[held] @ solution) > 0)
        run.report(run.draw())
        left = np.flatnonzero(run.column(COPIES) > 0)
        sizes.append(len(left))
    return (left < planted).sum() / planted, (left >= planted).sum() / planted, sizes


def test_planted_artefacts_go_and_what_cannot_be_predicted_stays(life: Any) -> None:
    artefacts, clean, sizes = filtered(life, {})
    assert artefacts < 0.05
    assert clean > 0.75
    assert sizes == sorted(sizes, reverse=True)
    assert all(before - after <= 60 for before, after in zip([400, *sizes], sizes, strict=False))
    # A threshold that nothing reaches, or one round, does not do it.
    assert filtered(life, {"threshold": 1.01})[0] == 1
    assert filtered(life, {"rounds": 1})[0] > 0.6


@pytest.mark.parametrize("bad", [{"k": 0}, {"rounds": 0}, {"every": 0}, {"after_epochs": -1}, {"least": 0}])
def test_parameters_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Aflite.parse(bad)
