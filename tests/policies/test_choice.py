"""The cuts that methods make through a ranking, against a plain sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard_server.policies.draw.engines.choice import ascending, greatest, least, scored
from steelyard_server.policies.draw.rows import Moment

NOW = Moment(0, 0, 3)
SCORES = st.lists(st.sampled_from([np.nan, -np.inf, -1.0, 0.0, 1.0, 2.0, np.inf]), min_size=1, max_size=20)


@given(scores=SCORES, gone=st.integers(0, 2**20 - 1), k=st.integers(-1, 21))
def test_the_least_and_the_greatest_are_those_of_a_sort_with_the_same_lots(
    scores: list[float], gone: int, k: int
) -> None:
    values = np.array(scores)
    among = np.array([not gone >> i & 1 for i in range(len(scores))])
    order = ascending(values, among, NOW)
    assert scored(values, among) == len(order)
    assert np.flatnonzero(least(values, among, k, NOW)).tolist() == sorted(order[: max(k, 0)].tolist())
    downward = ascending(-values, among, NOW)
    assert np.flatnonzero(greatest(values, among, k, NOW)).tolist() == sorted(downward[: max(k, 0)].tolist())


@pytest.mark.parametrize("k", [1, 5, 9])
def test_equal_scores_are_cut_by_lot_alone(k: int) -> None:
    hits = sum(
        least(np.zeros(10), np.ones(10, np.bool_), k, Moment(0, 0, seed)).astype(int) for seed in range(500)
    )
    # Each comes with chance k / 10; sd of its count below 11.2, six of those: an error rate of 2e-8 for all ten.
    assert np.abs(hits - 50 * k).max() < 67
