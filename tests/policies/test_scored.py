"""The scored draw: leaves against the formulas, the law of each sampling mode, and a scale that follows the scores."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from steelyard import weigh
from steelyard_server.core.tree import UNSEEN
from steelyard_server.policies.draw.contract import Examples
from steelyard_server.policies.draw.engines.local import ScoredDrawer
from steelyard_server.policies.draw.scored import Scored

ERROR_RATE = 1e-6
"""Chance that a right drawer fails a statistical test, had the seed not been fixed."""

MODES = ["independent", "stratified", "distinct"]
NAN = float("nan")

Scores = npt.NDArray[np.float32]


def examples_of(scores: Any, retired: Any = ()) -> Examples:
    column = np.array(scores, np.float32)
    return Examples(len(column), np.array(sorted(retired), np.int64), {"score": column})


def scored(**config: Any) -> Scored:
    return Scored.parse({"method": "scored", "score": "score", **config})


def drawer_of(
    draw: Scored, examples: Examples, batch_size: int = 4, seed: int = 1, state: Any = None
) -> ScoredDrawer:
    stored = None if state is None else json.loads(json.dumps(state))
    drawer = draw.drawer(examples, seed=seed, batch_size=batch_size, state=stored)
    assert isinstance(drawer, ScoredDrawer)
    return drawer


def law_of(drawer: ScoredDrawer, size: int) -> list[float]:
    """The probability of each id, from the batches that it is in; 0 for one that never comes in many batches."""
    law = [0.0] * size
    for step in range(2000):
        if sum(law) > 1 - 1e-13:
            break
        drawn = drawer.draw(step)
        assert drawn.probability is not None
        for example, probability in zip(drawn.ids.tolist(), drawn.probability.tolist(), strict=True):
            assert law[example] in (0.0, probability)
            law[example] = probability
    return law


def leaves_of(drawer: ScoredDrawer) -> npt.NDArray[np.uint32]:
    return drawer._tree.all_leaves()


# ---- the transforms ----

SPREAD = np.array([0.0, 1e-6, 0.03, 0.5, 1.0, 2.0, 7.25, 11.0, 3e4], np.float32)

FORMULAS: dict[str, tuple[dict[str, Any], Any]] = {
    "identity": ({"transform": "identity"}, lambda s: s),
    "power 1": ({"transform": "power"}, lambda s: s),
    "power 0.6": ({"transform": "power", "alpha": 0.6}, lambda s: s**0.6),
    "power 3": ({"transform": "power", "alpha": 3.0}, lambda s: s**3),
    "power 0": ({"transform": "power", "alpha": 0.0}, lambda s: s**0),
    "softmax": ({"transform": "softmax", "temperature": 2e4}, lambda s: np.exp(s / 2e4)),
    "softmax of small": (
        {"transform": "softmax", "temperature": 3.0},
        lambda s: np.exp(np.minimum(s, 99) / 3.0),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_leaves_are_the_weights_of_the_formula_within_half_a_quantum(name: str) -> None:
    config, formula = FORMULAS[name]
    scores = np.minimum(SPREAD, 99) if "small" in name else SPREAD
    drawer = drawer_of(scored(**config), examples_of(scores))
    scale = drawer.get_state()["scale"]
    expected = np.asarray(formula(scores.astype(np.float64))) * 2.0**scale
    leaves = leaves_of(drawer).astype(np.float64)
    # Half a quantum of rounding, one at the least, and the error of the logarithm: 1e-14 of up to 16 bits.
    assert np.all(np.abs(leaves - np.maximum(expected, 1.0)) <= 0.5 + 1e-11 * expected)
    assert 2**27 < leaves.max() <= 2**28


@pytest.mark.parametrize("transform", ["identity", "power", "softmax"])
def test_no_score_is_unseen_and_a_retired_id_has_no_leaf(transform: str) -> None:
    drawer = drawer_of(scored(transform=transform), examples_of([1, NAN, 3, NAN], retired=[2, 3]))
    leaves = leaves_of(drawer)
    assert leaves[1] == UNSEEN
    assert leaves[2:].tolist() == [0, 0]
    assert drawer.drawable == 2
    assert drawer.never_reported == 1


def test_a_negative_score_is_refused_where_masses_need_it_and_otherwise_not() -> None:
    values = np.array([1.0, -0.5, -2.0], np.float32)
    for transform in ("identity", "power"):
        objection = scored(transform=transform).objection("score", values)
        assert objection is not None
        assert "got -0.5 at position 1" in objection
        assert scored(transform=transform).objection("another", values) is None
    assert scored(transform="softmax").objection("score", values) is None
    for unknown in ([math.nan], [math.nan, 0.5], []):
        assert scored().objection("score", np.array(unknown, np.float32)) is None
    assert "position 2" in (scored().objection("score", np.array([math.nan, 0, -1], np.float32)) or "")


def test_a_negative_score_that_is_there_already_weighs_the_least_and_not_like_an_unseen_one() -> None:
    drawer = drawer_of(scored(transform="power"), examples_of([1.0, -0.5, 0.0, NAN]))
    assert leaves_of(drawer)[1:].tolist() == [1, 1, UNSEEN]
    drawer.check()


def test_the_hottest_and_coldest_scores_that_a_softmax_can_get_are_drawn() -> None:
    limits = np.finfo(np.float32)
    examples = examples_of([float(limits.max), float(limits.min), 0.0, 1.0, NAN])
    drawer = drawer_of(scored(transform="softmax", temperature=1e-9, sampling="independent"), examples)
    drawer.check()
    # The greatest and the unseen, which weighs as much as the greatest.
    assert law_of(drawer, 5) == pytest.approx([0.5, 0, 0, 0, 0.5], abs=1e-8)


# ---- what an example without a score weighs ----


def test_an_unseen_example_weighs_like_the_greatest_the_mean_or_the_number() -> None:
    scores = [1.0, 2.0, 6.0, NAN]
    for unseen, weight in (("max", 6.0), ("mean", 3.0), (1.5, 1.5), (0.25, 0.25)):
        drawer = drawer_of(scored(unseen=unseen, sampling="independent"), examples_of(scores))
        expected = np.array([1.0, 2.0, 6.0, weight]) / (9.0 + weight)
        assert law_of(drawer, 4) == pytest.approx(expected.tolist(), rel=1e-7)


def test_a_number_far_above_all_scores_is_what_an_unseen_example_weighs() -> None:
    drawer = drawer_of(scored(unseen=1e6, sampling="independent"), examples_of([1e3, 1e3, NAN]))
    assert law_of(drawer, 3) == pytest.approx([1 / 1002, 1 / 1002, 1000 / 1002], rel=1e-4)


def test_the_greatest_weight_is_remembered_when_scores_have_become_small() -> None:
    examples = examples_of([8.0] * 50)
    drawer = drawer_of(scored(sampling="independent"), examples)
    examples.columns["score"][:] = 1e-7
    drawer.changed(np.arange(50))
    examples.size = 51
    examples.columns["score"] = np.append(examples.columns["score"], np.float32(NAN))
    drawer.grew()
    drawer.check()
    assert law_of(drawer, 51)[50] == pytest.approx(8 / (8 + 50e-7), rel=1e-6)


def test_where_nothing_was_reported_every_id_is_as_likely() -> None:
    for unseen in ("max", "mean", 0.0, 3.0):
        drawer = drawer_of(scored(unseen=unseen), examples_of([NAN] * 8))
        assert law_of(drawer, 8) == pytest.approx([1 / 8] * 8, rel=1e-12)


# ---- the floor ----


@pytest.mark.parametrize("floor", [0.01, 0.25, 0.9, 0.9999])
def test_the_floor_is_the_uniform_share_of_the_law(floor: float) -> None:
    scores = np.array([0.0, 0.5, 1.0, 2.0, 4.0, NAN], np.float32)
    drawer = drawer_of(
        scored(floor=floor, unseen=1.0, sampling="independent"), examples_of(scores, retired=[2])
    )
    weights = np.array([0.0, 0.5, 0.0, 2.0, 4.0, 1.0])
    expected = (1 - floor) * weights / weights.sum() + floor / 5
    expected[2] = 0
    # Leaves and the share are integers, of some 2^28 quanta, and a score of 0 has one.
    assert law_of(drawer, 6) == pytest.approx(expected.tolist(), rel=1e-7, abs=1e-8)


def test_a_steep_floor_over_many_examples_does_not_outgrow_the_mass_line() -> None:
    size = 1 << 22
    examples = examples_of(np.full(size, 3.0, np.float32))
    drawer = drawer_of(scored(floor=0.9999), examples)
    drawer.draw(0)
    examples.size = size * 2 + 1
    examples.columns["score"] = np.full(examples.size, np.nan, np.float32)
    examples.columns["score"][:size] = 3.0
    drawer.grew()
    drawer.draw(1)
    drawer.check()


# ---- the law and the batches ----


def some_scores(size: int, seed: int = 3) -> Scores:
    return np.random.default_rng(seed).gamma(0.7, size=size).astype(np.float32)


@pytest.mark.parametrize("mode", MODES)
def test_ids_are_drawn_as_often_as_their_probability_says(mode: str) -> None:
    size, batch_size, steps = 40, 8, 4000
    drawer = drawer_of(scored(sampling=mode, floor=0.1), examples_of(some_scores(size)), batch_size, seed=9)
    law = np.array(law_of(drawer, size))
    counts = np.zeros(size)
    for step in range(10_000, 10_000 + steps):
        counts += np.bincount(drawer.draw(step).ids, minlength=size)
    expected = law * batch_size * steps
    # Under the two modes of low variance copies vary less than under multinomial draws, so this bound is safe for them.
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < stats.chi2.isf(ERROR_RATE, size - 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_importance_weights_undo_the_draw_exactly(mode: str, floor: float) -> None:
    """No Monte Carlo: the sum over all ids of expected copies · weight · value / B is the mean value."""
    size, batch_size = 12, 4
    scores = np.append(some_scores(size - 2) + np.float32(0.05), [np.float32(9.0), np.float32(NAN)])
    drawer = drawer_of(scored(sampling=mode, floor=floor), examples_of(scores), batch_size)
    law = np.array(law_of(drawer, size))
    assert law.sum() == pytest.approx(1.0, rel=1e-12)
    weights = weigh.weights(np.ones(size), {"method": "importance"}, probability=law, examples=size)
    values = np.random.default_rng(4).normal(size=size)
    copies = batch_size * law
    assert float((copies * weights * values).sum() / batch_size) == pytest.approx(
        float(values.mean()), rel=1e-12
    )
    if mode == "distinct":
        assert copies.max() == 1.0


def test_a_distinct_batch_has_no_id_twice_and_the_sure_ones_always() -> None:
    scores = some_scores(30)
    scores[[4, 9]] = 1e5
    drawer = drawer_of(scored(sampling="distinct"), examples_of(scores), batch_size=10)
    for step in range(300):
        ids = set(drawer.draw(step).ids.tolist())
        assert len(ids) == 10
        assert {4, 9} <= ids


def test_too_few_examples_for_a_distinct_batch_are_an_obstacle_and_for_the_others_not() -> None:
    assert scored(sampling="distinct").too_small(3, 4) == (
        "sampling 'distinct' needs at least batch_size = 4 drawable examples, got 3"
    )
    assert scored(sampling="distinct").too_small(4, 4) is None
    assert scored(sampling="independent").too_small(1, 4) is None
    assert scored(sampling="independent").too_small(0, 4) == "no example may be drawn: all are retired"


@pytest.mark.parametrize("mode", ["independent", "stratified"])
def test_a_batch_with_replacement_may_be_larger_than_the_dataset(mode: str) -> None:
    drawn = drawer_of(scored(sampling=mode), examples_of([1.0, 3.0]), batch_size=100).draw(0)
    assert set(drawn.ids.tolist()) == {0, 1}


def test_the_effective_sample_ratio_is_that_of_the_law() -> None:
    drawer = drawer_of(scored(sampling="independent"), examples_of([1.0, 2.0, 3.0, 0.5], retired=[3]))
    p = np.array([1, 2, 3]) / 6
    assert drawer.effective_sample_ratio() == pytest.approx(1 / (3 * float((p**2).sum())), rel=1e-6)


# ---- the scale follows the scores ----


def assert_like_one_rebuilt(drawer: ScoredDrawer, draw: Scored, examples: Examples, step: int) -> None:
    """Same leaves and same batch from the column and the stored state alone."""
    drawer.check()
    rebuilt = drawer_of(draw, examples, state=drawer.get_state())
    assert np.array_equal(leaves_of(rebuilt), leaves_of(drawer))
    mine, theirs = drawer.draw(step), rebuilt.draw(step)
    assert mine.ids.tolist() == theirs.ids.tolist()
    assert mine.probability is not None
    assert theirs.probability is not None
    assert mine.probability.tolist() == theirs.probability.tolist()


SCORES = st.sampled_from([0.0, 1e-30, 1e-6, 1e-3, 0.5, 1.0, 3.0, 10.0, 1e4, 1e30])


@settings(max_examples=60)
@given(
    size=st.integers(4, 12),
    draw=st.sampled_from(
        [
            scored(sampling="independent"),
            scored(unseen="mean", alpha=2.0, floor=0.2),
            scored(unseen=5.0, sampling="stratified"),
            scored(transform="softmax", sampling="independent", temperature=0.01),
        ]
    ),
    data=st.data(),
)
def test_a_drawer_rebuilt_from_its_state_is_the_live_one_at_every_change(
    size: int, draw: Scored, data: st.DataObject
) -> None:
    examples = examples_of([data.draw(st.just(NAN) | SCORES) for _ in range(size)])
    drawer = drawer_of(draw, examples)
    for step in range(data.draw(st.integers(1, 12))):
        kind = data.draw(st.sampled_from(["change", "change", "change all", "grow", "retire"]))
        everyone = st.sampled_from(range(examples.size))
        if kind == "grow":
            more = data.draw(st.integers(1, 4))
            examples.columns["score"] = np.append(
                examples.columns["score"], np.full(more, np.nan, np.float32)
            )
            examples.size += more
            drawer.grew()
        elif kind == "retire":
            gone = np.setdiff1d(sorted(data.draw(st.sets(everyone, max_size=2))), examples.retired).astype(
                np.int64
            )
            if examples.size - len(examples.retired) - len(gone) < 4:
                continue
            examples.retired = np.union1d(examples.retired, gone)
            drawer.retired(gone)
        else:
            ids = np.array(
                sorted(data.draw(st.sets(everyone))) if kind == "change" else range(examples.size), np.int64
            )
            same = data.draw(SCORES)
            for example in ids:
                examples.columns["score"][example] = same if kind == "change all" else data.draw(SCORES)
            drawer.changed(ids)
        assert_like_one_rebuilt(drawer, draw, examples, step)


def test_a_score_of_1e30_after_ones_is_given_room() -> None:
    draw, examples = scored(sampling="independent"), examples_of([1.0] * 20)
    drawer = drawer_of(draw, examples)
    examples.columns["score"][3] = 1e30
    drawer.changed(np.array([3]))
    assert_like_one_rebuilt(drawer, draw, examples, 0)
    assert drawer.draw(1).ids.tolist() == [3] * 4
    examples.columns["score"][5] = 3e30
    drawer.changed(np.array([5]))
    assert leaves_of(drawer)[5] / leaves_of(drawer)[3] == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize("first", [NAN, 10.0])
@pytest.mark.parametrize("small", [1e-3, 1e-9, 1e-20])
def test_losses_that_fall_far_keep_their_proportions(first: float, small: float) -> None:
    """Whether the drawer began with the losses of 10 or heard of them later."""
    draw, examples = scored(sampling="independent"), examples_of([first] * 200)
    drawer = drawer_of(draw, examples)
    for start in range(0, 200, 10):
        ids = np.arange(start, start + 10)
        examples.columns["score"][ids] = 10.0
        drawer.changed(ids)
    shape = np.linspace(1, 2, 200).astype(np.float32)
    for start in range(0, 200, 10):
        ids = np.arange(start, start + 10)
        examples.columns["score"][ids] = np.float32(small) * shape[ids]
        drawer.changed(ids)
        assert_like_one_rebuilt(drawer, draw, examples, start)
    leaves = leaves_of(drawer).astype(np.float64)
    assert leaves / leaves[0] == pytest.approx(shape.astype(np.float64), rel=1e-3)


def test_the_leaves_of_others_recover_when_the_greatest_is_retired() -> None:
    draw, examples = scored(sampling="independent"), examples_of([1e30, *[1.0, 2.0, 3.0] * 5])
    drawer = drawer_of(draw, examples)
    examples.retired = np.array([0])
    drawer.retired(np.array([0]))
    assert_like_one_rebuilt(drawer, draw, examples, 0)
    assert leaves_of(drawer)[3] / leaves_of(drawer)[1] == pytest.approx(3.0, rel=1e-6)


def test_an_outlier_that_stays_costs_few_rebuilds(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, examples = scored(sampling="independent"), examples_of([1.0] * 5000)
    drawer = drawer_of(draw, examples)
    scans = 0
    greatest_now = ScoredDrawer._greatest_now

    def counted(self: ScoredDrawer) -> float | None:
        nonlocal scans
        scans += 1
        return greatest_now(self)

    monkeypatch.setattr(ScoredDrawer, "_greatest_now", counted)
    examples.columns["score"][0] = 1e30
    drawer.changed(np.array([0]))
    for step in range(500):
        ids = np.arange(1 + step, 11 + step)
        examples.columns["score"][ids] = 1.0 + step
        drawer.changed(ids)
    assert 1 <= scans <= 8


# ---- pinned ----

PINNED = {
    "independent": "26097ef85105839a",
    "stratified": "c0e54f966f7cec6c",
    "distinct": "9b724d6dd36cef2b",
}


@pytest.mark.parametrize("mode", MODES)
def test_the_batches_are_the_same_in_every_version(mode: str) -> None:
    """Pinned: a run that is continued by another version or on another machine must draw the same."""
    examples = examples_of([NAN if k % 3 == 0 else k * 37 % 101 / 101 for k in range(500)])
    drawer = drawer_of(scored(sampling=mode, floor=0.05, alpha=0.7), examples, batch_size=32, seed=2**64 - 1)
    digest = hashlib.blake2b(digest_size=8)
    for step in range(50):
        drawn = drawer.draw(step)
        assert drawn.probability is not None
        digest.update(drawn.ids.astype("<i8").tobytes() + drawn.probability.astype("<f8").tobytes())
        ids = np.unique(drawn.ids)
        examples.columns["score"][ids] *= np.float32(0.5)
        examples.columns["score"][ids] = np.nan_to_num(examples.columns["score"][ids], nan=2.0)
        drawer.changed(ids)
    assert math.isfinite(drawer.effective_sample_ratio())
    assert digest.hexdigest() == PINNED[mode]
