"""CoLoR-Filter: the best n / tau as brute force finds them, and documents of the target among others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.core.events import IdsRetired
from steelyard_server.policies.draw.color_filter import ColorFilter
from steelyard_server.policies.draw.rows import Moment, Rows

NAN = float("nan")


def kept(draw: ColorFilter, rows: Rows) -> list[int]:
    return np.flatnonzero(draw.judge(rows, Moment(0, 0, 7)).mask).tolist()


@pytest.mark.parametrize("tau", [1, 2.5, 7, 16, 32, 64, 1000])
def test_the_best_are_those_that_brute_force_finds(tau: float, rows_of: Callable[..., Rows]) -> None:
    rng = np.random.default_rng(5)
    prior, conditional = rng.gamma(3, size=(2, 149)).astype(np.float32)
    prior[[3, 50]], conditional[[50, 99]] = np.nan, np.nan
    retired = [1, 2]
    rows = rows_of(prior_loss=prior, conditional_loss=conditional, retired=retired)
    scored = [
        (float(prior[i]) - float(conditional[i]), i)
        for i in range(149)
        if i not in retired and not np.isnan(prior[i] + conditional[i])
    ]
    assert len(scored) == 144
    best = sorted(scored, reverse=True)[: max(int(144 // tau), 1)]
    assert kept(ColorFilter(tau=tau), rows) == sorted(i for _, i in best)


def test_documents_of_the_target_are_chosen_and_with_the_models_swapped_none_is(
    rows_of: Callable[..., Rows],
) -> None:
    rng = np.random.default_rng(6)
    size, words = 600, 30
    target = rng.dirichlet(np.full(words, 0.5))
    other = rng.dirichlet(np.full(words, 0.5))
    planted = rng.permutation(size)[:30]
    documents = rng.multinomial(80, other, size)
    documents[planted] = rng.multinomial(80, target, 30)
    # A unigram model of the corpus, and the same one moved halfway to the target.
    before = documents.sum(axis=0) / documents.sum()
    after = 0.5 * before + 0.5 * target
    columns = {
        "prior_loss": -(documents * np.log(before + 1e-9)).sum(axis=1) / 80,
        "conditional_loss": -(documents * np.log(after + 1e-9)).sum(axis=1) / 80,
    }
    rows = rows_of(**columns)
    assert np.intersect1d(kept(ColorFilter(tau=20), rows), planted).size >= 29
    swapped = ColorFilter(tau=20, prior="conditional_loss", conditional="prior_loss")
    assert np.intersect1d(kept(swapped, rows), planted).size == 0
    # The loss of one model alone finds far fewer.
    alone = np.argsort(columns["conditional_loss"])[:30]
    assert np.intersect1d(alone, planted).size <= 20


def test_a_run_draws_the_chosen_and_all_of_them_where_no_column_says_anything(life: Any) -> None:
    draw = {"method": "color_filter", "tau": 4}
    run = life(draw, 8, 4, columns={"prior_loss": range(8), "conditional_loss": [0] * 8})
    assert sorted(run.draw().ids.tolist()) == [6, 6, 7, 7]
    assert sorted(life(draw, 4, 4).draw().ids.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [{"tau": 0.5}, {"prior": ""}, {"kappa": 1}])
def test_parameters_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ColorFilter.parse(bad)


def test_a_group_of_which_the_whole_epoch_is_retired_can_be_asked_about(life: Callable[..., Any]) -> None:
    draw = {"method": "color_filter", "tau": 2, "prior": "a", "conditional": "b"}
    columns = {"group": [0] * 10 + [1] * 10, "a": np.arange(20) % 10, "b": np.zeros(20)}
    run = life(draw, 20, 4, columns=columns, mix={"method": "group_balanced"})
    run.draw()
    run.state.apply(IdsRetired(np.arange(5, 10)))
    assert 0 < run.state.peek_drawer().effective_sample_ratio() <= 1
    assert not np.isin(run.draw().ids, np.arange(5, 10)).any()
