"""Mixes that follow the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.mix.domain_schedule import DomainSchedule

SIZES = np.array([900, 90, 10])
BASE, END = [0.6, 0.38, 0.02], [0.3, 0.2, 0.5]


def schedule(**fields: Any) -> DomainSchedule:
    stages = [{"start_fraction": 0, "mix": BASE}, {"start_fraction": 0.8, "mix": END}]
    return DomainSchedule.parse({"stages": stages, "total_steps": 100, **fields})


def law(rule: DomainSchedule, steps: int) -> Any:
    state = rule.start(SIZES)
    return np.array([rule.masses(state, SIZES, step) for step in range(steps)])


def test_the_last_fifth_upsamples_the_small_domain_and_no_step_before_it_does() -> None:
    rows = law(schedule(), 100)
    np.testing.assert_allclose(rows[:80], np.tile(BASE, (80, 1)))
    np.testing.assert_allclose(rows[80:], np.tile(END, (20, 1)))
    # How many rows of each domain a training of 100 steps of 50 sees.
    np.testing.assert_allclose(50 * rows.sum(axis=0), [2700, 1720, 580])
    static = schedule(stages=[{"start_step": 0, "mix": BASE}])
    assert 50 * law(static, 100).sum(axis=0)[2] == pytest.approx(100), "without it the domain is hardly seen"


def test_weak_labels_come_first_and_strong_ones_after_a_step() -> None:
    rule = DomainSchedule.parse(
        {"stages": [{"start_step": 0, "mix": [1, 0, 0]}, {"start_step": 30, "mix": [0, 0, 1]}]}
    )
    rows = law(rule, 60)
    assert (rows[:30].argmax(axis=1) == 0).all()
    assert (rows[30:].argmax(axis=1) == 2).all()


def test_interpolation_goes_in_straight_lines_between_normalised_mixes_and_stays_at_the_last() -> None:
    stages = [{"start_step": 0, "mix": [2, 2, 0]}, {"start_step": 10, "mix": [0, 0, 5]}]
    rows = law(DomainSchedule.parse({"stages": stages, "interpolate": "linear"}), 20)
    np.testing.assert_allclose(rows[5], [0.25, 0.25, 0.5])
    np.testing.assert_allclose(np.diff(rows[:11], axis=0), np.tile([-0.05, -0.05, 0.1], (10, 1)), atol=1e-12)
    np.testing.assert_allclose(rows[10:], np.tile([0, 0, 1], (10, 1)))


def test_a_fraction_that_rounding_would_move_starts_at_its_step() -> None:
    stages = [{"start_fraction": 0, "mix": [1, 0, 0]}, {"start_fraction": 0.07, "mix": [0, 1, 0]}]
    rule = DomainSchedule.parse({"stages": stages, "total_steps": 100})
    assert 0.07 * 100 > 7, "so a comparison of floats would start a step late"
    assert rule.starts == [0, 7]


def test_a_group_that_comes_later_has_no_share_and_an_empty_stage_falls_back_on_sizes() -> None:
    rule = DomainSchedule.parse({"stages": [{"start_step": 0, "mix": [0, 1, 0]}]})
    np.testing.assert_array_equal(rule.masses({}, np.array([5, 5, 5, 5]), 0), [0, 1, 0, 0])
    np.testing.assert_array_equal(rule.masses({}, np.array([5, 0, 2]), 0), [5, 0, 2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"total_steps": None}, "expected total_steps"),
        ({"stages": []}, "at least 1"),
        ({"stages": [{"start_step": 5, "mix": BASE}]}, "start at 0"),
        ({"stages": [{"start_step": 0, "mix": BASE}, {"start_step": 0, "mix": END}]}, "later and later"),
        ({"stages": [{"mix": BASE}]}, "either start_step or start_fraction"),
        ({"stages": [{"start_step": 0, "start_fraction": 0, "mix": BASE}]}, "either start_step or"),
        ({"stages": [{"start_step": 0, "mix": [0, 0, 0]}]}, "a number above 0"),
    ],
)
def test_schedules_that_say_nothing_definite_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        schedule(**fields)


def test_a_mix_of_another_number_of_groups_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"mix.stages.0.mix: expected one number for each of the 2 groups .* got 3"
    ):
        schedule().start(SIZES[:2])
