"""One choice by several rankings, under bounds a group."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.mix.rank_aggregate_quota import RankAggregateQuota

GROUPS = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2])
FIRST = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9])
SECOND = np.array([2.0, 1, 5, 4, 3, 8, 6, 7, 9])
COLUMNS = {"a": FIRST, "b": SECOND}


def rule(k: int = 4, **fields: Any) -> RankAggregateQuota:
    return RankAggregateQuota.parse({"rankings": ["a", "b"], "k": k, **fields})


def kept(made: RankAggregateQuota, groups: Any = GROUPS, columns: Any = None) -> list[int]:
    mask = made.keep(groups, columns or COLUMNS, 0)
    assert mask.dtype == np.bool_
    return np.flatnonzero(mask).tolist()


@pytest.mark.parametrize("score", ["borda", "sntv"])
@pytest.mark.parametrize("least", [None, [0, 1, 1], [1, 2, 1], [0, 3, 0], [4, 0, 0]])
def test_the_choice_is_the_best_of_all_that_meet_the_bounds(score: str, least: list[int] | None) -> None:
    def worth(i: int) -> float:
        ranks = [FIRST[i], SECOND[i]]
        return sum(9 - r for r in ranks) if score == "borda" else sum(r == 1 for r in ranks)

    def meets(chosen: Any) -> bool:
        return all((GROUPS[list(chosen)] == g).sum() >= n for g, n in enumerate(least or []))

    best = max(sum(map(worth, chosen)) for chosen in combinations(range(9), 4) if meets(chosen))
    made = rule(score=score, least=least)
    made.start(np.array([5, 3, 1]))
    got = kept(made)
    assert len(got) == 4
    assert meets(got)
    assert sum(map(worth, got)) == best


def test_sntv_takes_who_is_first_somewhere_and_borda_who_stands_well_everywhere() -> None:
    columns = {"a": np.array([1.0, 2, 3, 4]), "b": np.array([4.0, 2, 3, 1])}
    groups = np.zeros(4, np.int64)
    assert kept(rule(k=2, score="sntv"), groups, columns) == [0, 3]
    assert kept(rule(k=1, score="borda"), groups, columns) == [1]


def test_rankings_that_favour_one_group_leave_the_others_out_unless_bounds_say_otherwise() -> None:
    assert kept(rule()) == [0, 1, 2, 3]
    assert kept(rule(least=[0, 1, 1])) == [0, 1, 6, 8]


def test_borda_finds_the_planted_good_examples_of_a_group_whose_ranks_are_biased() -> None:
    rng = np.random.default_rng(3)
    quality, groups = np.repeat(rng.normal(size=200), 2), np.arange(400) % 2
    columns = {name: quality + 0.3 * rng.normal(size=400) - 4.0 * groups for name in "abc"}
    fields = {"rankings": ["a", "b", "c"], "order": "descending", "k": 40}
    best = set(np.argsort(-quality)[:40].tolist())
    biased = set(kept(RankAggregateQuota.parse(fields), groups, columns))
    fair = set(kept(RankAggregateQuota.parse({**fields, "least": [20, 20]}), groups, columns))
    assert len(best & fair) >= 30
    assert len(best & biased) <= 20


def test_scores_are_ranked_from_the_greatest_down() -> None:
    columns = {name: -values for name, values in COLUMNS.items()}
    assert kept(rule(order="descending"), columns=columns) == kept(rule())


def test_examples_in_no_group_are_not_kept_and_those_without_a_rank_stand_last() -> None:
    groups = np.array([0, -1, 0, 0])
    columns = {"a": np.array([np.nan, 1.0, 2.0, 3.0]), "b": np.array([1.0, 1.0, 2.0, np.nan])}
    # Of three candidates: 0 has ranks 3 and 1, 2 has 1 and 2, 3 has 2 and 3.
    assert kept(rule(k=1), groups, columns) == [2]
    assert kept(rule(k=2), groups, columns) == [0, 2]


def test_where_there_are_too_few_all_are_kept_and_bounds_take_what_there_is() -> None:
    assert kept(rule(k=50)) == list(range(9))
    assert kept(rule(k=4, least=[0, 0, 3])) == [0, 1, 2, 8]
    assert kept(rule(), np.full(9, -1)) == []


def test_equal_scores_go_to_the_lower_id() -> None:
    same = {"a": np.ones(9), "b": np.ones(9)}
    assert kept(rule(k=3), columns=same) == [0, 1, 2]


def test_what_is_kept_is_drawn_by_size() -> None:
    sizes = np.array([3, 0, 1])
    np.testing.assert_array_equal(rule().masses({}, sizes, 5), sizes)


def test_bad_parameters_are_refused() -> None:
    for fields in ({"k": 0}, {"k": 1, "rankings": []}, {"k": 1, "least": [-1]}):
        with pytest.raises(ValidationError):
            RankAggregateQuota.parse({"rankings": ["a"], **fields})
    with pytest.raises(ValueError, match="mix.least: expected one number for each of the 3 groups .* got 2"):
        rule(least=[1, 1]).start(np.array([5, 3, 1]))
    with pytest.raises(ValueError, match="bounds that sum to at most k = 4, got 5"):
        rule(least=[2, 2, 1]).start(np.array([5, 3, 1]))
