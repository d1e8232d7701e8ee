"""Staleness k: the batch of step t knows exactly the reports of steps 0..t-1-k, whenever they come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from steelyard_server.core import events as e
from steelyard_server.policies.policy import parse_policy
from steelyard_server.runs.state import RunState

STEPS = 8


def losses_of(step: int, variant: int = 0) -> e.Float32s:
    return ((np.arange(6) * 7 + step * 3) % 11 / 4 + 0.25 + variant * 5).astype(np.float32)


def served(run: RunState) -> tuple[list[int], list[float]]:
    drawn = run.draw()
    run.apply(drawn)
    assert drawn.probability is not None
    return drawn.ids.tolist(), drawn.probability.tolist()


def batch_of(
    run: RunState, target: int, variants: dict[int, int], withheld: frozenset[int] = frozenset()
) -> Any:
    """The batch of `target`, where every step but the withheld is reported as soon as it is drawn, in two slices."""
    for step in range(target):
        served(run)
        if step not in withheld:
            losses = losses_of(step, variants.get(step, 0))
            run.apply(e.LossesReported(step, 4, {"loss": losses[4:]}))
            run.apply(e.LossesReported(step, 0, {"loss": losses[:4]}))
    return served(run)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_reports_of_the_last_k_steps_change_nothing_whether_withheld_early_or_other(
    make_run: Any, k: int
) -> None:
    expected = batch_of(make_run(staleness=k), STEPS, {})
    recent = range(STEPS - k, STEPS)
    assert batch_of(make_run(staleness=k), STEPS, {}, frozenset(recent)) == expected
    assert batch_of(make_run(staleness=k), STEPS, dict.fromkeys(recent, 1)) == expected


@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_report_of_step_t_minus_1_minus_k_is_known_and_waited_for(make_run: Any, k: int) -> None:
    expected = batch_of(make_run(staleness=k), STEPS, {})
    assert batch_of(make_run(staleness=k), STEPS, {STEPS - 1 - k: 1}) != expected
    run = make_run(staleness=k)
    for step in range(k + 1):
        assert run.awaited_step() is None
        served(run)
        if step:
            run.apply(e.LossesReported(step, 0, {"loss": losses_of(step)}))
    assert run.awaited_step() == 0
    run.apply(e.LossesReported(0, 0, {"loss": losses_of(0)[:5]}))
    assert run.awaited_step() == 0
    run.apply(e.LossesReported(0, 5, {"loss": losses_of(0)[5:]}))
    assert run.awaited_step() is None


def test_the_order_in_which_slices_and_steps_arrive_changes_nothing(make_run: Any) -> None:
    batches = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        run = make_run(staleness=3)
        for _ in range(3):
            served(run)
        for step in order:
            run.apply(e.LossesReported(step, 0, {"loss": losses_of(step)}))
        batches.append([served(run) for _ in range(3)])
    assert batches[0] == batches[1] == batches[2]


def test_under_any_what_has_arrived_is_known_at_once(make_run: Any) -> None:
    run = make_run(staleness="any")
    ids, _ = served(run)
    run.apply(e.LossesReported(0, 2, {"loss": losses_of(0)[:1]}))
    assert run.examples.columns["last_loss"][ids[2]] == losses_of(0)[0]
    assert run.state_version == 1
    assert run.awaited_step() is None


def test_a_shuffle_never_waits_and_its_reports_are_history_as_soon_as_all_before_are_closed(
    make_run: Any,
) -> None:
    run = make_run(staleness=0, draw={"method": "shuffle"})
    for _ in range(3):
        assert run.awaited_step() is None
        run.apply(run.draw())
    run.apply(e.LossesReported(1, 0, {"loss": losses_of(1)}))
    assert [entry.step for entry in run.unsaved_history] == []
    run.apply(e.LossesReported(0, 0, {"loss": losses_of(0)}))
    assert [entry.step for entry in run.unsaved_history] == [0, 1]
    assert run.folded_steps == 2


@pytest.mark.parametrize("staleness", [0, "any"])
def test_steps_that_nobody_reports_are_closed_and_forgotten_beyond_the_window(
    make_run: Any, staleness: Any
) -> None:
    run = make_run(staleness=staleness, draw={"method": "shuffle"})
    window = run.spec.report_window
    for step in range(window + 50):
        run.apply(run.draw())
        if step == 20:
            run.apply(e.LossesReported(step, 0, {"loss": losses_of(step)[:3]}))
    assert len(run.steps) == window + 1
    assert run.closed_steps == run.folded_steps == min(run.steps) == 49
    assert run.counters.expired_steps == 49
    assert [entry.step for entry in run.unsaved_history] == [20]
    run.check()


def test_a_draw_that_cannot_be_made_leaves_the_state_as_it_was(make_run: Any) -> None:
    run = make_run(size=8, staleness=0, draw={"method": "scored", "sampling": "distinct"})
    served(run)
    run.apply(e.LossesReported(0, 0, {"loss": losses_of(0)}))
    run.apply(e.IdsRetired(np.arange(3)))
    with pytest.raises(ValueError, match="needs at least batch_size = 6 drawable examples, got 5"):
        run.draw()
    # The report is folded by the draw that knows it and not before.
    assert run.folded_steps == 0
    run.apply(e.DatasetGrown(9))
    served(run)
    assert run.folded_steps == 1


def test_reports_in_flight_are_folded_under_the_policy_that_draws_next(make_run: Any) -> None:
    run = make_run(staleness=2)
    ids, _ = served(run)
    served(run)
    run.apply(e.LossesReported(0, 0, {"loss": losses_of(0)}))
    run.apply(
        e.PolicyChanged(
            parse_policy({"method": "scored", "score": "ema_loss"}, {"method": "uniform"}).canonical()
        )
    )
    assert set(run.examples.columns) == {"ema_loss"}
    served(run)
    served_before = run.folded_steps
    assert served_before == 0
    run.apply(e.LossesReported(1, 0, {"loss": losses_of(1)}))
    run.apply(e.LossesReported(2, 0, {"loss": losses_of(2)}))
    served(run)
    assert run.folded_steps == 1
    assert np.isfinite(run.examples.columns["ema_loss"][ids]).all()


def test_a_step_is_weighed_by_the_policy_that_it_was_drawn_under(make_run: Any) -> None:
    run = make_run(staleness="any", draw={"method": "shuffle"})
    run.apply(run.draw())
    for r in (0.2, 0.4):
        linupper = {"method": "linupper", "r": r}
        run.apply(e.PolicyChanged(parse_policy({"method": "shuffle"}, linupper).canonical()))
    run.apply(run.draw())
    assert run.weigher_of(0)["method"] == "uniform"
    assert run.weigher_of(1)["r"] == 0.4
    # The draw did not change, so neither did its place in the epoch.
    assert not set(run.steps[0].drawn.ids.tolist()) & set(run.steps[1].drawn.ids.tolist())


def test_a_rank_that_comes_late_begins_at_its_first_open_step_and_not_at_forgotten_ones(
    make_run: Any,
) -> None:
    run = make_run(staleness="any", draw={"method": "shuffle"})
    for _ in range(400):
        run.apply(run.draw())
    first = min(run.steps)
    assert first > 0
    for step in (first, first + 1):
        run.apply(e.LossesReported(step, 0, {"loss": losses_of(step)}))
    run.apply(e.LossesReported(first + 2, 0, {"loss": losses_of(0)[:3]}))
    run.apply(e.StepClosed(first + 3, "owner"))
    assert run.first_unreported(lambda size: (0, 3), 0) == first + 4
    assert run.first_unreported(lambda size: (3, 3), 0) == first + 2
    assert run.first_unreported(lambda size: (3, 3), first + 10) == first + 10
    assert run.first_unreported(lambda size: (3, 3), 400) == 400


def test_a_journal_out_of_order_is_refused(make_run: Any) -> None:
    run = make_run(staleness="any")
    drawn = run.draw()
    run.apply(drawn)
    with pytest.raises(ValueError, match="expected the batch of step 1 next in the journal, got 0"):
        run.apply(drawn)
    with pytest.raises(ValueError, match="a journal holds one RunCreated"):
        run.apply(e.RunCreated({}, 1))
