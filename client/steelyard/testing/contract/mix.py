"""The contract of a mix method; steelyard_server.policies.mix.contract states it. Its example is for three groups."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from steelyard.testing.contract import runs
from steelyard.testing.contract.models import (
    bad_parameters_are_refused_by_name,
    the_configuration_survives_being_stored,
)
from steelyard.testing.contract.numbers import losses as any_loss
from steelyard.testing.contract.numbers import try_all, unknown_too
from steelyard.testing.contract.subject import Subject
from steelyard_server.policies.mix import GroupReport, Mix, State

Sizes = npt.NDArray[np.int64]

SIZES = np.array([10, 6, 8], np.int64)
ROWS = 12
STEPS = 8


def the_same_reports_give_the_same_masses(subject: Subject) -> None:
    mix = _mix(subject)
    reports = [_report(subject, step) for step in range(STEPS)]
    one, other = (_live(mix, reports) for _ in range(2))
    for step, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        np.testing.assert_array_equal(mine, theirs, f"masses of step {step}, the second time")


def updating_leaves_the_state_before_it_as_it_was(subject: Subject) -> None:
    mix = _mix(subject)
    state = mix.start(SIZES)
    for step in range(STEPS):
        before = json.dumps(state)
        later = mix.update(state, _report(subject, step))
        _masses(mix, state, SIZES, step)
        assert json.dumps(state) == before, f"step {step} changed the state that it was given"
        state = later


def a_state_is_all_that_is_remembered(subject: Subject) -> None:
    mix, state = _mix(subject), _mix(subject).start(SIZES)
    for step in range(STEPS):
        stored: State = json.loads(json.dumps(state, allow_nan=False))
        again = subject.method.parse(mix.canonical())
        mine, theirs = _masses(mix, state, SIZES, step), _masses(again, stored, SIZES, step)
        np.testing.assert_array_equal(theirs, mine, f"masses of step {step}, from a checkpoint")
        state = again.update(stored, _report(subject, step))


def groups_that_were_never_reported_have_masses(subject: Subject) -> None:
    mix, state = _mix(subject), _mix(subject).start(SIZES)
    for step in range(STEPS):
        _masses(mix, state, SIZES, step)
    only = _report(subject, 0)
    first = only.groups == 0
    values = {name: column[first] for name, column in only.values.items()}
    state = mix.update(state, GroupReport(0, only.groups[first], values, SIZES))
    _masses(mix, state, SIZES, 1)


def the_order_in_a_report_does_not_matter(subject: Subject) -> None:
    mix = _mix(subject)
    reports = [_report(subject, step) for step in range(STEPS)]
    masses = _live(mix, reports)
    backwards = np.arange(ROWS)[::-1]
    for order in (backwards, np.random.Generator(np.random.Philox(7)).permutation(ROWS)):
        permuted = [
            GroupReport(one.step, one.groups[order], _taken(one.values, order), one.sizes) for one in reports
        ]
        for step, (mine, theirs) in enumerate(zip(masses, _live(mix, permuted), strict=True)):
            np.testing.assert_allclose(
                theirs, mine, rtol=1e-9, err_msg=f"masses behind step {step}, permuted"
            )


def equal_losses_give_equal_masses(subject: Subject) -> None:
    """Of a method that reads reports and whose parameters tell no group from another: for groups of one size."""
    mix = _mix(subject)
    if not mix.signals or any(getattr(mix, name) is not None for name in mix.per_group):
        return
    sizes = np.array([8, 8, 8], np.int64)
    state = mix.start(sizes)
    for step in range(STEPS):
        rows = {name: np.full(ROWS, 1.5) for name in (*mix.signals, *mix.columns)}
        state = mix.update(state, GroupReport(step, np.arange(ROWS) % 3, rows, sizes))
        masses = _masses(mix, state, sizes, step + 1)
        np.testing.assert_allclose(masses, masses[0], rtol=1e-9, err_msg=f"step {step + 1}, all values equal")


def masses_are_finite_and_not_negative(subject: Subject) -> None:
    """Whatever finite signals came, outliers of 1e30 among them; and some group that has examples has mass."""
    mix = _mix(subject)

    def live(values: list[float], others: list[float], groups: list[int]) -> None:
        state = mix.start(SIZES)
        for step in range(3):
            rows = {name: np.roll(np.array(values), step) for name in mix.signals}
            rows.update({name: np.array(others) for name in mix.columns})
            state = mix.update(state, GroupReport(step, np.array(groups, np.int64), rows, SIZES))
            json.dumps(state, allow_nan=False)
            _masses(mix, state, SIZES, step + 1)

    lists = (
        st.lists(one, min_size=ROWS, max_size=ROWS) for one in (any_loss, unknown_too, st.integers(-1, 2))
    )
    try_all(*lists)(live)


def an_outlier_leaves_masses_sound(subject: Subject) -> None:
    mix = _mix(subject)
    for value in (1e30, -1e30, 3e38):
        state = mix.start(SIZES)
        for step in range(STEPS):
            report = _report(subject, step)
            if step == 2:
                for name in mix.signals:
                    report.values[name][4] = value
            state = mix.update(state, report)
            _masses(mix, state, SIZES, step + 1)


def groups_may_grow_come_and_run_empty(subject: Subject) -> None:
    mix, state = _mix(subject), _mix(subject).start(SIZES)
    state = mix.update(state, _report(subject, 0))
    for step, sizes in enumerate(([14, 6, 8], [14, 6, 8, 5, 4], [0, 6, 8, 5, 4], [0, 0, 0, 0, 4]), 1):
        now = np.array(sizes, np.int64)
        state = mix.grown(state, now)
        _masses(mix, state, now, step)
        state = mix.update(state, _report(subject, step, now))
        _masses(mix, state, now, step + 1)


def a_choice_within_groups_is_a_mask_and_always_the_same(subject: Subject) -> None:
    mix, size = _mix(subject), 24
    columns = {name: subject.column(name, size) for name in mix.columns}
    groups = np.arange(size) % 3
    kept, again = (mix.keep(groups, columns, 0) for _ in range(2))
    if kept is None:
        return
    assert kept.dtype == np.bool_, f"expected a mask of bool, got {kept.dtype}"
    assert kept.shape == (size,), f"expected a mask of {size} examples, got one of shape {kept.shape}"
    assert kept.any(), "keeps no example at all"
    np.testing.assert_array_equal(again, kept, "the second time")


CLAUSES: tuple[Callable[[Subject], None], ...] = (
    the_configuration_survives_being_stored,
    bad_parameters_are_refused_by_name,
    the_same_reports_give_the_same_masses,
    updating_leaves_the_state_before_it_as_it_was,
    a_state_is_all_that_is_remembered,
    groups_that_were_never_reported_have_masses,
    the_order_in_a_report_does_not_matter,
    equal_losses_give_equal_masses,
    masses_are_finite_and_not_negative,
    an_outlier_leaves_masses_sound,
    groups_may_grow_come_and_run_empty,
    a_choice_within_groups_is_a_mask_and_always_the_same,
    *runs.CLAUSES,
)


def _mix(subject: Subject) -> Mix:
    mix: Mix = subject.method.parse(subject.config)
    return mix


def _report(subject: Subject, step: int, sizes: Sizes = SIZES) -> GroupReport:
    mix, ids = _mix(subject), (np.arange(ROWS) * 5 + step * 7) % 24
    values = {name: subject.signal(name, ids, step).astype(np.float64) for name in mix.signals}
    values.update({name: subject.column(name, 24)[ids].astype(np.float64) for name in mix.columns})
    return GroupReport(step, ids % 3, values, sizes)


def _live(mix: Mix, reports: list[GroupReport]) -> list[npt.NDArray[np.float64]]:
    """The masses behind each of the reports that follow each other."""
    state, found = mix.start(SIZES), []
    for report in reports:
        state = mix.update(state, report)
        found.append(_masses(mix, state, SIZES, report.step + 1))
    return found


def _masses(mix: Mix, state: State, sizes: Sizes, step: int) -> npt.NDArray[np.float64]:
    """The masses, after what holds for all of them is checked. They are a law only up to a factor."""
    state = mix.prepared(state, sizes, step)
    again: State = json.loads(json.dumps(mix.prepared(state, sizes, step), allow_nan=False))
    assert again == json.loads(json.dumps(state)), f"prepared twice for step {step} it is another state"
    masses = mix.masses(state, sizes, step)
    assert masses.shape == sizes.shape, f"expected masses of shape {sizes.shape}, got {masses.shape}"
    assert masses.dtype == np.float64, f"expected masses of float64, got {masses.dtype}"
    assert np.isfinite(masses).all(), f"masses {masses.tolist()} at step {step}"
    assert (masses >= 0).all(), f"masses {masses.tolist()} at step {step}"
    assert (masses[sizes > 0] > 0).any(), f"masses {masses.tolist()} of groups of sizes {sizes.tolist()}"
    return masses


def _taken(values: Mapping[str, Any], order: npt.NDArray[Any]) -> dict[str, Any]:
    return {name: column[order] for name, column in values.items()}
