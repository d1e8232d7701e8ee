"""Fixed shares."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.mix import GroupReport
from steelyard_server.policies.mix.static import Static

SIZES = np.array([10, 0, 30])


def test_shares_are_the_masses_at_every_step_and_whatever_is_reported() -> None:
    rule = Static(shares=(0.5, 0.2, 0.3))
    state = rule.start(SIZES)
    report = GroupReport(3, np.array([0, 2]), {}, SIZES)
    for step in (0, 1000):
        np.testing.assert_array_equal(rule.masses(state, SIZES, step), [0.5, 0.2, 0.3])
        state = rule.update(state, report)


def test_without_shares_a_group_has_its_size() -> None:
    rule = Static()
    np.testing.assert_array_equal(rule.masses(rule.start(SIZES), SIZES, 0), [10, 0, 30])


def test_shares_of_another_number_of_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="mix.shares: expected one number for each of the 3 groups .* got 2"):
        Static(shares=(1, 2)).start(SIZES)


def test_a_group_that_comes_later_has_no_share() -> None:
    rule, more = Static(shares=(1, 2, 3)), np.array([10, 0, 30, 5])
    state = rule.grown(rule.start(SIZES), more)
    np.testing.assert_array_equal(rule.masses(state, more, 0), [1, 2, 3, 0])


def test_where_every_group_with_a_share_is_empty_the_sizes_count() -> None:
    rule = Static(shares=(0, 1, 0))
    np.testing.assert_array_equal(rule.masses(rule.start(SIZES), SIZES, 0), SIZES)


@pytest.mark.parametrize("shares", [(-1.0, 2.0), (float("nan"), 1.0), (float("inf"), 1.0), (0.0, 0.0)])
def test_shares_that_are_no_masses_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        Static(shares=shares)
