"""The transforms of `scored` that look at all scores. Its others, its law and its bits: tests/policies/test_scored.py;
the engine beneath these: tests/policies/test_refreshed.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from steelyard_server.core.events import IdsRetired
from steelyard_server.policies.draw.rows import Moment, Rows
from steelyard_server.policies.draw.scored import Scored
from steelyard_server.policies.policy import PolicyError, parse_policy
from steelyard_server.runs.spec import parse_spec

LOSSES = [0.5, 1.0, 2.0, 4.0]
NAN = float("nan")
SCORED = {"method": "scored", "sampling": "independent", "refresh_steps": 1}
LOOKING = ["rank", "percentile", "gumbel"]


def test_percentiles_are_those_of_the_golden(begin: Any, law: Any, golden: Any) -> None:
    """p ∝ percentile^(1/keep - 1) with keep 0.5, of losses in ascending order."""
    run = begin({**SCORED, "transform": "percentile", "alpha": 1.0}, 4, signals={"loss": LOSSES})
    expected = golden("selective_backprop/composer keep=.5 N=4 (by ascending rank)")["p"]
    assert law(run).tolist() == pytest.approx(expected, abs=1e-6)


def test_ranks_are_those_of_the_golden(begin: Any, law: Any, golden: Any) -> None:
    run = begin({**SCORED, "transform": "rank", "alpha": 0.7}, 4, signals={"loss": LOSSES})
    expected = golden("per/rank-based alpha=0.7 (formula from memory of paper)")["p"]
    assert law(run).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("transform", ["rank", "percentile"])
def test_the_law_is_the_formula_where_equal_scores_share(
    begin: Any, law: Any, transform: str, alpha: float
) -> None:
    losses = np.random.default_rng(1).integers(0, 12, size=20).astype(float)
    run = begin({**SCORED, "transform": transform, "alpha": alpha}, 20, signals={"loss": losses})
    places = np.arange(20)
    by_place = (20.0 - places) ** -alpha if transform == "rank" else ((places + 0.5) / 20) ** alpha
    ordered = np.sort(losses)
    expected = np.array([by_place[ordered == loss].mean() for loss in losses])
    assert law(run) == pytest.approx(expected / expected.sum(), rel=1e-5)


def test_of_the_highest_with_noise_the_share_is_kept_and_drawn_alike(begin: Any, law: Any) -> None:
    losses = np.random.default_rng(2).gamma(1.0, size=41)
    run = begin({**SCORED, "transform": "gumbel", "keep": 0.3}, 41, signals={"loss": losses})
    p = law(run)
    assert int((p > 0).sum()) == 13
    assert p[p > 0] == pytest.approx(np.full(13, 1 / 13), rel=1e-9)


def test_who_is_kept_first_follows_the_boltzmann_law() -> None:
    """With one kept, it is a draw of exp(s / temperature). A right rule fails by chance once in 10^6 seeds."""
    scores, counts = np.array([0.0, 1.0, 2.0, 3.0], np.float32), np.zeros(4)
    draw = Scored(transform="gumbel", temperature=2.0, keep=0.25)
    rows = Rows(4, np.empty(0, np.int64), {"last_loss": scores})
    for step in range(3000):
        weights = draw.weights(rows, Moment(step=step, epoch=0, seed=4))
        assert np.count_nonzero(weights) == 1
        counts += weights
    law = np.exp(scores / 2.0)
    expected = law / law.sum() * 3000
    assert float(((counts - expected) ** 2 / expected).sum()) < stats.chi2.isf(1e-6, 3)


def test_at_temperature_near_0_the_highest_are_kept_and_noise_changes_who_it_is(begin: Any, law: Any) -> None:
    losses = np.random.default_rng(3).gamma(1.0, size=40)
    kept = {}
    for temperature in (1e-9, 1.0):
        config = {**SCORED, "transform": "gumbel", "temperature": temperature}
        run = begin(config, 40, signals={"loss": losses})
        rounds = []
        for _ in range(2):
            rounds.append(frozenset(np.flatnonzero(law(run)).tolist()))
            run.apply(run.draw())
            run.close_below(run.next_step)
        kept[temperature] = rounds
    highest = frozenset(np.argsort(losses)[20:].tolist())
    assert kept[1e-9] == [highest, highest]
    assert len({highest, *kept[1.0]}) == 3


@pytest.mark.parametrize(
    ("unseen", "losses"),
    [("max", [1.0, 4.0, 4.0, 2.0]), ("mean", [1.0, 7 / 3, 4.0, 2.0]), (0.5, [1.0, 0.5, 4.0, 2.0])],
)
@pytest.mark.parametrize("transform", ["rank", "percentile"])
def test_an_example_without_a_score_has_the_one_that_unseen_says(
    begin: Any, law: Any, transform: str, unseen: Any, losses: list[float]
) -> None:
    config = {**SCORED, "transform": transform, "unseen": unseen}
    known = begin(config, 4, signals={"loss": losses})
    unknown = begin(config, 4, signals={"loss": [1.0, NAN, 4.0, 2.0]})
    assert law(unknown).tolist() == pytest.approx(law(known).tolist(), rel=1e-6)
    assert law(begin(config, 4)).tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("transform", LOOKING)
def test_retired_examples_have_no_place_in_the_order(begin: Any, law: Any, transform: str) -> None:
    config = {**SCORED, "transform": transform, "keep": 1.0}
    run = begin(config, 5, signals={"loss": [*LOSSES, 100.0]})
    run.apply(IdsRetired(np.array([4])))
    other = begin(config, 4, signals={"loss": LOSSES})
    assert law(run).tolist() == pytest.approx([*law(other).tolist(), 0.0], rel=1e-6)


@pytest.mark.parametrize("transform", LOOKING)
def test_negative_scores_are_ordered_like_others(begin: Any, law: Any, transform: str) -> None:
    config = {**SCORED, "transform": transform, "score": "quality", "temperature": 1e-9, "keep": 0.5}
    policy = parse_policy(config, {"method": "uniform"})
    assert policy.objection("quality", np.array([-1.0], np.float32)) is None
    run = begin(config, 4, columns={"quality": [-9.0, 3.0, -1.0, 0.0]})
    p = law(run)
    assert p[1] >= p[3] >= p[2] >= p[0]
    assert p[1] > p[0]


# ---- what they are for ----


@pytest.mark.parametrize("transform", ["rank", "percentile"])
def test_an_outlier_moves_no_order_as_it_moves_a_power(begin: Any, law: Any, transform: str) -> None:
    laws = {}
    for how in (transform, "power"):
        for greatest in (5.0, 1e30):
            run = begin({**SCORED, "transform": how}, 5, signals={"loss": [*LOSSES, greatest]})
            laws[how, greatest] = law(run).tolist()
    assert laws[transform, 1e30] == laws[transform, 5.0]
    assert laws["power", 1e30][4] > 0.999 > laws["power", 5.0][4]


def test_a_distinct_draw_of_the_kept_goes_through_all_of_them(begin: Any) -> None:
    """With half kept and drawn without replacement in a batch, an epoch's worth of batches is of the kept alone."""
    losses = np.arange(40.0)
    config = {
        "method": "scored",
        "transform": "gumbel",
        "temperature": 1e-9,
        "keep": 0.5,
        "refresh_steps": 50,
    }
    run = begin(config, 40, batch_size=10, signals={"loss": losses})
    seen = np.zeros(40)
    for _ in range(50):
        drawn = run.draw()
        run.apply(drawn)
        run.close_below(run.next_step)
        seen[drawn.ids] += 1
    assert seen[:20].sum() == 0
    assert seen[20:].min() > 5


# ---- what is stored, and what is refused ----


def test_a_run_of_an_older_version_has_the_new_parameters_at_their_defaults() -> None:
    older = {
        "method": "scored",
        "score": "last_loss",
        "transform": "power",
        "alpha": 1.0,
        "temperature": 1.0,
        "floor": 0.0,
        "sampling": "distinct",
        "unseen": "max",
        "ema_decay": 0.9,
    }
    assert Scored.parse(older) == Scored()
    assert Scored().canonical() == {**older, "keep": 0.5, "refresh_steps": None}
    spec = {"name": "r", "dataset": "d", "batch_size": 4, "seed": 1, "weigh": {"method": "uniform"}}
    assert parse_spec({**spec, "draw": older}) == parse_spec({**spec, "draw": {"method": "scored"}})


def test_only_transforms_that_look_at_all_scores_keep_a_column() -> None:
    for transform in ("identity", "power", "softmax"):
        assert Scored(transform=transform).own == ()
    for transform in LOOKING:
        assert len(Scored(transform=transform).own) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config", [{"keep": 0.0}, {"keep": 1.1}, {"refresh_steps": 0}, {"transform": "ranks"}]
)
def test_parameters_out_of_range_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=f"draw.{next(iter(config))}"):
        parse_policy({"method": "scored", **config}, {"method": "uniform"})


@pytest.mark.parametrize("transform", LOOKING)
def test_losses_are_not_weighed_by_as_well(transform: str) -> None:
    with pytest.raises(PolicyError, match="the draw reads last_loss"):
        parse_policy({"method": "scored", "transform": transform}, {"method": "linupper"})
