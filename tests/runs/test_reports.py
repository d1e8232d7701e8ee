"""Judging reports: what is refused and why, what is taken, what is known already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard_server.core import events as e
from steelyard_server.runs.errors import Exists, Invalid, RunError, Unready
from steelyard_server.runs.messages import Disposition, Report
from steelyard_server.runs.reports import check_values, judge
from steelyard_server.runs.state import RunState

NAN = float("nan")


def f32(*values: float) -> e.Float32s:
    return np.array(values, np.float32)


@pytest.fixture
def run(make_run: Callable[..., RunState]) -> RunState:
    """Steps 0 and 1 are drawn; of step 0 positions 0..2 are reported."""
    state = make_run(staleness=4)
    for _ in range(2):
        state.apply(state.draw())
    state.apply(e.LossesReported(0, 0, {"loss": f32(1, NAN, 3)}))
    return state


def report(run: RunState, step: int = 0, offset: int = 3, **changes: Any) -> Report:
    record = run.steps.get(step)
    values = {
        "digest": record.drawn.digest if record else 0,
        "signals": {"loss": f32(4, 5, 6)},
        "want_weights": False,
    }
    return Report(step, offset, **{**values, **changes})


def verdict(run: RunState, judged: Report, retained: int | None = None) -> Disposition:
    return judge(run, judged, lambda step: retained)


def refusal(run: RunState, judged: Report, kind: type[RunError]) -> str:
    with pytest.raises(kind) as error:
        verdict(run, judged)
    return str(error.value)


def test_a_new_slice_applies_and_the_same_one_again_is_a_duplicate(run: RunState) -> None:
    assert verdict(run, report(run)) is Disposition.APPLIED
    run.apply(e.LossesReported(0, 3, {"loss": f32(4, 5, 6)}))
    assert verdict(run, report(run)) is Disposition.DUPLICATE
    assert verdict(run, report(run, offset=0, signals={"loss": f32(1, NAN, 3)})) is Disposition.DUPLICATE
    assert verdict(run, report(run, offset=1, signals={"loss": f32(NAN)})) is Disposition.DUPLICATE


def test_a_slice_that_is_known_in_part_applies_to_what_is_new(run: RunState) -> None:
    overlapping = report(run, offset=2, signals={"loss": f32(3, 7)})
    assert verdict(run, overlapping) is Disposition.APPLIED
    before = run.counters.reported_losses
    run.apply(e.LossesReported(0, 2, overlapping.signals))
    assert run.counters.reported_losses == before + 1


def test_what_comes_after_a_step_is_closed_is_late_and_what_was_known_is_still_a_duplicate(
    run: RunState,
) -> None:
    run.apply(e.StepClosed(0, "owner"))
    assert verdict(run, report(run)) is Disposition.LATE
    assert verdict(run, report(run, offset=0, signals={"loss": f32(1, NAN, 3)})) is Disposition.DUPLICATE


def test_a_step_that_memory_forgot_is_late_where_the_journal_knows_its_digest(run: RunState) -> None:
    run.steps.clear()
    assert verdict(run, report(run, digest=77), retained=77) is Disposition.LATE
    assert "is no longer retained" in refusal(run, report(run), Unready)
    with pytest.raises(Unready, match="expected the digest 000000000000004e"):
        verdict(run, report(run, digest=77), retained=78)


def test_a_step_that_is_not_drawn_yet_is_refused(run: RunState) -> None:
    message = refusal(run, report(run, step=2), Unready)
    assert message == "expected a report of a step below 2, the next to draw; got step 2"


def test_losses_of_another_batch_are_refused_with_both_digests(run: RunState) -> None:
    mine, other = run.steps[0].drawn.digest, run.steps[1].drawn.digest
    message = refusal(run, report(run, digest=other), Unready)
    assert f"{mine:016x}" in message
    assert f"{other:016x}" in message
    assert "step 0" in message


def test_other_values_for_positions_that_were_reported_are_refused(run: RunState) -> None:
    message = refusal(run, report(run, offset=0, signals={"loss": f32(1, 2, 3)}), Exists)
    assert message == "positions 0..2 of step 0 were reported before with other values"
    # A further signal for a position that is already folded would be lost.
    refusal(run, report(run, offset=0, signals={"loss": f32(1), "el2n": f32(1)}), Exists)


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ({}, "expected at least one signal, all of one length above 0, for step 0; got lengths {}"),
        ({"loss": f32()}, "got lengths {'loss': 0}"),
        ({"loss": f32(1), "el2n": f32(1, 2)}, "got lengths {'loss': 1, 'el2n': 2}"),
        ({"el2n": f32(1)}, "expected the signal 'loss' in the report of step 0; got ['el2n']"),
        (
            {"loss": f32(1, 2, 3, 4)},
            "positions within the batch of 6; got 4 values from position 3 on at step 0",
        ),
    ],
)
def test_signals_that_do_not_fit_are_refused(run: RunState, signals: Any, message: str) -> None:
    assert message in refusal(run, report(run, signals=signals), Invalid)


def test_a_negative_loss_is_refused_where_the_draw_needs_masses(run: RunState) -> None:
    message = refusal(run, report(run, signals={"loss": f32(1, NAN, -2)}), Invalid)
    assert message.startswith("step 0: expected non-negative values for last_loss")
    assert "got -2 at position 2" in message


def test_a_negative_loss_is_taken_where_it_does_not(make_run: Callable[..., RunState]) -> None:
    for draw in ({"method": "shuffle"}, {"method": "scored", "transform": "softmax"}):
        state = make_run(draw=draw)
        state.apply(state.draw())
        assert verdict(state, report(state, signals={"loss": f32(-1)})) is Disposition.APPLIED


@pytest.mark.parametrize(("value", "name"), [(NAN, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_a_loss_that_is_not_finite_is_refused_where_the_run_says_so(
    make_run: Callable[..., RunState], value: float, name: str
) -> None:
    state = make_run(on_nonfinite="reject")
    state.apply(state.draw())
    message = refusal(state, report(state, signals={"loss": f32(1, value)}), Invalid)
    assert message.endswith(f"(the run's on_nonfinite is 'reject'); got {name} at position 1")
    with pytest.raises(Invalid, match="for the observation"):
        check_values(state, {"loss": f32(value)}, "the observation")


def test_a_loss_that_is_not_finite_is_otherwise_counted_kept_in_the_history_and_left_out_of_the_fold(
    make_run: Callable[..., RunState],
) -> None:
    run = make_run(staleness=0)
    drawn = run.draw()
    run.apply(drawn)
    losses = f32(1, NAN, np.inf, -np.inf, 5, 6)
    assert verdict(run, report(run, offset=0, signals={"loss": losses})) is Disposition.APPLIED
    run.apply(e.LossesReported(0, 0, {"loss": losses}))
    run.apply(run.draw())
    assert run.counters.nonfinite_losses == 3
    np.testing.assert_array_equal(run.unsaved_history[0].losses, losses)
    finite = set(drawn.ids[np.isfinite(losses)].tolist())
    assert set(np.flatnonzero(~np.isnan(run.examples.columns["last_loss"])).tolist()) == finite


def test_judging_changes_nothing(run: RunState) -> None:
    before = (run.counters.reported_losses, run.steps[0].reported.tolist(), run.closed_steps)
    verdict(run, report(run))
    assert (run.counters.reported_losses, run.steps[0].reported.tolist(), run.closed_steps) == before
