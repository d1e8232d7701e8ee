"""Losses of the last few steps, in the manner of CacheSampler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from steelyard_server.core.events import (
    BatchDrawn,
    ColumnSet,
    DatasetGrown,
    IdsRetired,
    LossesReported,
    RunCreated,
    SignalsObserved,
)
from steelyard_server.policies.policy import PolicyError, parse_policy
from steelyard_server.runs import snapshot
from steelyard_server.runs.spec import parse_spec
from steelyard_server.runs.state import RunState

ERROR_RATE = 1e-6
"""Chance that a right draw fails a statistical test, had the seed not been fixed."""
GOLDEN = "katharopoulos/CacheSampler N=6 staleness=3 cache_prob=.5 smooth=.2 after update {0:.5,1:1,2:2,3:4}"
HISTORY = {"method": "loss_history"}


def test_the_law_is_that_of_the_golden(begin: Any, law: Any, observe: Any, golden: Any) -> None:
    run = begin(HISTORY, 6)
    observe(run, [0, 1, 2, 3], {"loss": [0.5, 1.0, 2.0, 4.0]})
    expected = golden(GOLDEN)
    assert law(run).tolist() == pytest.approx(expected["p"], abs=1e-6)
    scores = np.array(expected["scores"])
    assert law(run).tolist() == pytest.approx((scores / scores.sum()).tolist(), abs=1e-6)


@pytest.mark.parametrize("cache_prob", [0.2, 0.5, 0.95])
@pytest.mark.parametrize("smooth", [0.0, 0.2, 3.0])
def test_the_law_is_that_of_the_scores(
    begin: Any, law: Any, observe: Any, cache_prob: float, smooth: float
) -> None:
    losses = np.random.default_rng(2).gamma(1.0, size=20)
    run = begin({**HISTORY, "cache_prob": cache_prob, "smooth": smooth}, 50)
    observe(run, np.arange(20), {"loss": losses})
    a = cache_prob / (1 - cache_prob)
    scores = np.ones(50)
    scores[:20] += a * 50 * (losses + smooth) / (losses + smooth).sum()
    assert law(run) == pytest.approx(scores / scores.sum(), rel=1e-5)


def test_batches_follow_the_formula(begin: Any, observe: Any) -> None:
    losses = np.random.default_rng(3).gamma(1.0, size=20)
    run = begin(HISTORY, 40, batch_size=8000)
    observe(run, np.arange(20), {"loss": losses})
    expected = np.full(40, 0.5 / 40)
    expected[:20] += 0.5 * (losses + 0.2) / (losses + 0.2).sum()
    counts = np.bincount(run.draw().ids, minlength=40)
    assert float(((counts - expected * 8000) ** 2 / (expected * 8000)).sum()) < stats.chi2.isf(ERROR_RATE, 39)


def test_where_nothing_is_cached_all_are_drawn_alike(begin: Any, law: Any) -> None:
    assert law(begin(HISTORY, 10)).tolist() == pytest.approx([0.1] * 10)


def test_never_reported_new_and_retired_examples(begin: Any, law: Any, observe: Any) -> None:
    run = begin(HISTORY, 4)
    observe(run, [0, 1], {"loss": [1.0, 3.0]})
    run.apply(DatasetGrown(5))
    run.apply(IdsRetired(np.array([1])))
    assert law(run).tolist() == pytest.approx([0.5 + 0.125, 0, 0.125, 0.125, 0.125], rel=1e-6)
    assert run.drawer.never_reported == 3


def step(run: Any, losses: dict[int, float]) -> None:
    """A batch of these ids and losses, whatever the law."""
    drawn = run.draw()
    ids = np.array(list(losses))
    run.apply(BatchDrawn(**{field: getattr(drawn, field) for field in drawn.__slots__} | {"ids": ids}))
    run.apply(LossesReported(drawn.step, 0, {"loss": np.array(list(losses.values()), np.float32)}))


# ---- what it is for ----


@pytest.mark.parametrize("stale_after", [1, 3])
def test_a_loss_counts_until_so_many_newer_steps_were_reported(
    begin: Any, law: Any, stale_after: int
) -> None:
    run = begin({**HISTORY, "stale_after": stale_after}, 6, batch_size=2)
    step(run, {0: 100.0, 1: 1.0})
    for number in range(5):
        probability = law(run)[0]
        remembered = number < stale_after
        assert (probability > 0.3) == remembered, (number, probability)
        step(run, {2: 1.0, 3: 1.0})
    # The others are not forgotten, since they are reported again and again.
    assert law(run)[2:4].tolist() == pytest.approx([0.25 + 0.5 / 6] * 2, rel=1e-6)
    run.check()


def test_a_loss_reported_again_is_as_new_as_its_last_report(begin: Any, law: Any) -> None:
    run = begin(HISTORY, 6, batch_size=2)
    step(run, {0: 100.0, 1: 1.0})
    step(run, {0: 1.0, 2: 1.0})
    step(run, {3: 1.0, 4: 1.0})
    step(run, {3: 1.0, 4: 1.0})
    p = law(run)
    assert p[0] == pytest.approx(p[2], rel=1e-6)
    assert p[0] > p[1] == pytest.approx(1 / 12)
    run.check()


def test_a_last_loss_is_never_forgotten_which_is_the_difference(begin: Any, law: Any) -> None:
    run = begin({"method": "scored", "sampling": "independent", "unseen": 1.0}, 6, batch_size=2)
    step(run, {0: 100.0, 1: 1.0})
    for _ in range(5):
        step(run, {2: 1.0, 3: 1.0})
    assert law(run)[0] > 0.9


def test_it_does_not_matter_in_how_many_parts_a_step_is_reported(begin: Any, law: Any) -> None:
    laws = []
    for parts in ([4], [1, 2, 1]):
        run = begin(HISTORY, 12, batch_size=4, staleness="any")
        for _ in range(5):
            drawn = run.draw()
            run.apply(drawn)
            losses = (1.0 + drawn.ids).astype(np.float32)
            start = 0
            for count in parts:
                run.apply(LossesReported(drawn.step, start, {"loss": losses[start : start + count]}))
                start += count
        laws.append(law(run).tolist())
    assert laws[0] == laws[1]


def test_reports_of_stale_steps_count_for_nothing(begin: Any, law: Any) -> None:
    run = begin(HISTORY, 12, batch_size=4, staleness="any")
    drawn = [run.draw()]
    run.apply(drawn[0])
    for _ in range(4):
        drawn.append(run.draw())
        run.apply(drawn[-1])
    for late in (4, 1, 2):
        run.apply(LossesReported(late, 0, {"loss": np.full(4, 5.0, np.float32)}))
        run.check()
    cached = set(drawn[4].ids.tolist()) | set(drawn[2].ids.tolist())
    assert set(np.flatnonzero(law(run) > 0.06).tolist()) == cached


@pytest.mark.parametrize(
    "config",
    [
        {"cache_prob": 0.0},
        {"cache_prob": 1.0},
        {"smooth": -0.1},
        {"stale_after": 0},
        {"stale_after": 1.5},
        {"floor": 0.1},
    ],
)
def test_parameters_out_of_range_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=f"{next(iter(config))}"):
        parse_policy({**HISTORY, **config}, {"method": "uniform"})


def test_losses_are_not_weighed_by_as_well_though_no_column_is_read() -> None:
    with pytest.raises(
        PolicyError, match="the draw reads each reported loss and the weigher reads the losses again"
    ):
        parse_policy(HISTORY, {"method": "linupper"})
    parse_policy({**HISTORY, "signal": "grad_norm"}, {"method": "linupper"})


@pytest.mark.parametrize("draw", [HISTORY, {"method": "grad_norm_mix", "refresh_steps": 1}], ids=str)
def test_a_mix_that_listens_to_another_signal_does_not_disturb_it(draw: dict[str, Any]) -> None:
    spec = {
        "name": "r",
        "dataset": "d",
        "batch_size": 4,
        "seed": 1,
        "staleness": 0,
        "draw": {**draw, "signal": "norm"},
        "mix": {"method": "group_dro"},
        "weigh": {"method": "uniform"},
    }
    run = RunState(RunCreated(parse_spec(spec).model_dump(mode="json"), 12))
    run.apply(ColumnSet("group", np.arange(12), (np.arange(12) % 2).astype(np.float32)))
    for with_norm in (False, True, False):
        drawn = run.draw()
        run.apply(drawn)
        signals = {"loss": np.ones(4, np.float32), **({"norm": np.ones(4, np.float32)} if with_norm else {})}
        run.apply(LossesReported(drawn.step, 0, signals))
    run.draw()
    run.check()


def test_a_restart_between_two_steps_that_get_stale_at_once_changes_nothing() -> None:
    draw = {"method": "loss_history", "smooth": 0.0}
    base = {"name": "r", "dataset": "d", "batch_size": 8, "seed": 1, "staleness": "any"}
    spec = parse_spec({**base, "draw": draw, "weigh": {"method": "uniform"}})
    run = RunState(RunCreated(spec.model_dump(mode="json"), 64))
    run.apply(run.draw())

    def report(state: RunState, step: int, ids: range, loss: float) -> None:
        state.apply(SignalsObserved(step, np.array(ids), {"loss": np.full(len(ids), loss, np.float32)}))

    # So far apart that the scale would show which of the two steps is dropped first.
    report(run, 0, range(8), 1.0)
    report(run, 1, range(8, 16), 2.0**-17)
    taken = snapshot.take(run)
    again = snapshot.restore(taken.meta, taken.blobs, taken.columns)
    for state in (run, again):
        report(state, 10, range(20, 28), 2.0**-15)
    assert again.get_drawer_state() == run.get_drawer_state()
