"""Rounds of a mix end with a step: what was folded by then acts from the next draw on, though nothing more is
reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from steelyard_server.core import events as e
from steelyard_server.policies.mix.drawer import MixDrawer
from steelyard_server.policies.policy import parse_policy
from steelyard_server.runs import snapshot
from steelyard_server.runs.state import RunState

SIZE, EVERY = 40, 5
GROUPS = (np.arange(SIZE) % 2).astype(np.float32)
MIXES: dict[str, dict[str, Any]] = {
    "cluster_softmax": {"rounds": None},
    "skill_it": {"eta": 2.0},
    "sheared_llama": {"targets": [0.0, 0.0]},
    "sheared_llama bandit": {"targets": [0.0, 0.0], "update_type": "bandit"},
    "cluster_ucb": {"per_round": 1, "passes": None},
}


def mix_of(name: str, **fields: Any) -> dict[str, Any]:
    return {"method": name.split()[0], "every": EVERY, "signal": "seen", **MIXES[name], **fields}


def begun(make_run: Any, mix: Any, staleness: Any = 0) -> RunState:
    run: RunState = make_run(SIZE, mix=mix, draw={"method": "shuffle"}, staleness=staleness)
    run.apply(e.ColumnSet("group", np.arange(SIZE), GROUPS))
    return run


def observed(high: int) -> e.SignalsObserved:
    """A pass over all examples, in which one of the two groups has the greater values."""
    values = np.where(high == GROUPS, 3.0, 0.1).astype(np.float32)
    return e.SignalsObserved(None, np.arange(SIZE), {"seen": values})


def law(run: RunState) -> list[float]:
    """The shares of the groups in the next batch, which is drawn."""
    run.apply(run.draw())
    assert isinstance(run.drawer, MixDrawer)
    shares: list[float] = run.drawer.masses().round(6).tolist()
    return shares


def train(run: RunState, step: int) -> None:
    run.apply(e.LossesReported(step, 0, {"loss": np.ones(6, np.float32)}))


def laws(run: RunState, steps: int, passes: dict[int, int]) -> list[list[float]]:
    """Batches of so many steps; `passes` behind the draws of those steps."""
    found = []
    for step in range(run.next_step, run.next_step + steps):
        found.append(law(run))
        if step in passes:
            run.apply(observed(passes[step]))
        train(run, step)
    return found


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("staleness", [0, 2, "any"])
def test_one_pass_acts_from_the_end_of_its_round_though_nothing_follows(
    make_run: Any, name: str, staleness: Any
) -> None:
    found = laws(begun(make_run, mix_of(name), staleness), 12, {2: 1})
    assert found[:EVERY] == [found[0]] * EVERY
    assert found[EVERY][1] > 0.6
    assert found[EVERY:] == [found[EVERY]] * 7


@pytest.mark.parametrize("name", MIXES)
def test_a_pass_behind_the_last_draw_of_a_round_acts_from_the_next_draw_on(make_run: Any, name: str) -> None:
    found = laws(begun(make_run, mix_of(name)), 14, {4: 1, 9: 0})
    assert found[4][1] <= 0.5
    assert found[5][1] > 0.6
    assert found[9] == found[5]
    assert found[10][1] < found[9][1]


def test_a_pass_that_comes_in_parts_counts_as_one(make_run: Any) -> None:
    whole, parts = (begun(make_run, mix_of("cluster_softmax")) for _ in range(2))
    for run in (whole, parts):
        laws(run, 5, {})
    one = observed(1)
    whole.apply(one)
    for at in (GROUPS == 0, GROUPS == 1):
        parts.apply(e.SignalsObserved(None, one.ids[at], {"seen": one.signals["seen"][at]}))
    assert law(parts) == law(whole)


def test_a_pass_before_training_acts_when_the_first_round_is_over(make_run: Any) -> None:
    run = begun(make_run, mix_of("cluster_softmax"))
    run.apply(observed(1))
    assert [share[1] > 0.6 for share in laws(run, 7, {})] == [False] * EVERY + [True] * 2


def test_rounds_are_counted_from_the_step_at_which_the_mix_began(make_run: Any) -> None:
    run = begun(make_run, {"method": "static"})
    laws(run, 8, {})
    policy = parse_policy({"method": "shuffle"}, {"method": "uniform"}, mix_of("cluster_softmax"))
    run.apply(e.PolicyChanged(policy.canonical()))
    assert [share[1] > 0.6 for share in laws(run, 7, {8 + 3: 1})] == [False] * EVERY + [True] * 2


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("saved_at", [3, 5, 6])
def test_a_run_that_is_saved_goes_on_with_its_rounds(make_run: Any, name: str, saved_at: int) -> None:
    calm, run = begun(make_run, mix_of(name)), begun(make_run, mix_of(name))
    want = laws(calm, 16, {2: 1, 9: 0})
    found = laws(run, saved_at, {2: 1})
    saved = snapshot.take(run, copy=True)
    again = snapshot.restore(saved.meta, saved.blobs, saved.columns)
    assert found + laws(again, 16 - saved_at, {9: 0}) == want


def test_ado_fits_what_was_observed_by_the_end_of_a_round(make_run: Any) -> None:
    run = begun(make_run, {"method": "ado", "signal": "seen", "every": 10, "ignored": 0})
    found = []
    for step in range(12):
        found.append(law(run))
        if step < 5:
            values = np.where(GROUPS == 1, 5.0 / (step + 1), 1.0).astype(np.float32)
            run.apply(e.SignalsObserved(None, np.arange(SIZE), {"seen": values}))
        train(run, step)
    assert found[:10] == [found[0]] * 10
    assert found[10][1] > found[0][1]
    assert found[11] == found[10]
