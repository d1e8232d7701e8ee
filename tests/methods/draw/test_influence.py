"""Influence scores: PVI as the authors' code gives it, pruning by score, within classes, and by lot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard.signals import pvi, vog
from steelyard_server.policies.draw.engines.choice import standardised
from steelyard_server.policies.draw.influence import Influence
from steelyard_server.policies.draw.rows import Moment, Rows

NOW = Moment(0, 0, 7)
NAN = float("nan")


def kept(draw: Influence, rows: Rows, seed: int = 7) -> list[int]:
    return np.flatnonzero(draw.judge(rows, Moment(0, 0, seed)).mask).tolist()


def test_pvi_is_the_authors(golden: Callable[[str], Any]) -> None:
    assert pvi(-np.log(0.5), -np.log(0.9)) == pytest.approx(golden("pvi/p_null=.5 p_x=.9"), abs=5e-7)


def test_vog_is_the_mean_deviation_over_checkpoints() -> None:
    gradients = np.random.default_rng(1).normal(size=(4, 3, 2, 5))
    expected = [
        np.mean([np.std([gradients[t, i, a, b] for t in range(4)]) for a in range(2) for b in range(5)])
        for i in range(3)
    ]
    np.testing.assert_allclose(vog(gradients), expected)
    with pytest.raises(
        ValueError, match=r"expected gradients \[checkpoints, n, inputs\.\.\.\], got \[4, 3\]"
    ):
        vog(np.zeros((4, 3)))


def test_the_lowest_or_the_highest_are_pruned_and_what_has_no_score_stays(
    rows_of: Callable[..., Rows],
) -> None:
    rows = rows_of(last_vog=[5, 1, NAN, 3, 2])
    assert kept(Influence(), rows) == [0, 2, 3]
    assert kept(Influence(prune="highest"), rows) == [1, 2, 4]
    assert kept(Influence(keep_share=0.25), rows) == [0, 2]


def test_within_classes_no_class_is_pruned_for_its_scale(rows_of: Callable[..., Rows]) -> None:
    scores, label = [1, 2, 3, 4, 100, 200, 300, 400, 7], [0, 0, 0, 0, 1, 1, 1, 1, NAN]
    rows = rows_of(last_vog=scores, label=label)
    assert kept(Influence(within="label"), rows) == [2, 3, 6, 7, 8]
    assert kept(Influence(), rows) == [5, 6, 7, 4] or kept(Influence(), rows) == [4, 5, 6, 7]


def test_scores_are_standardised_by_the_population_of_their_class(rows_of: Callable[..., Rows]) -> None:
    rng = np.random.default_rng(1)
    scores, label = rng.normal(3, 2, 60).astype(np.float32), rng.integers(0, 4, 60)
    live = rng.random(60) < 0.8
    got = standardised(scores, live, label.astype(np.float32))
    for kind in range(4):
        at = live & (label == kind)
        part = scores[at].astype(float)
        np.testing.assert_allclose(got[at], (part - part.mean()) / part.std(), rtol=1e-9)
    assert np.isnan(got[~live]).all()
    huge = standardised(np.array([1e30, 0, 0, 0], np.float32), np.ones(4, np.bool_))
    np.testing.assert_allclose(huge, np.array([3, -1, -1, -1]) / np.sqrt(3))
    assert standardised(np.full(5, 0.1, np.float32), np.ones(5, np.bool_)).tolist() == [0] * 5


def test_random_pruning_has_no_regard_for_the_score_and_sampling_has(rows_of: Callable[..., Rows]) -> None:
    rows = rows_of(last_vog=np.arange(100))
    high = {
        prune: np.mean(
            [np.sum(np.array(kept(Influence(prune=prune), rows, seed)) >= 50) for seed in range(60)]
        )
        for prune in ("random", "sampled", "lowest")
    }
    # Hypergeometric, 50 of 100: mean 25, variance 6.3; of the mean of 60, sd .32. Six of those: below 1e-8.
    assert high["random"] == pytest.approx(25, abs=2)
    assert 30 < high["sampled"] < 45
    assert high["lowest"] == 50


def test_pruning_the_lowest_pvi_drops_planted_wrong_labels_and_pruning_the_highest_keeps_them(
    rows_of: Callable[..., Rows], logistic: Any
) -> None:
    rng = np.random.default_rng(3)
    size, planted = 400, 40
    labels = np.where(np.arange(size) % 2, 1.0, -1.0)
    features = np.c_[labels[:, None] + rng.normal(0, 0.6, (size, 2)), np.ones(size)]
    wrong = rng.permutation(size)[:planted]
    labels[wrong] *= -1
    model, null = logistic(features, labels), logistic(np.ones((size, 1)), labels)
    for _ in range(150):
        at = rng.permutation(size)[:40]
        model.step(at)
        null.step(at)
    every = np.arange(size)
    rows = rows_of(pvi=pvi(null.losses(every), model.losses(every)))
    informative = kept(Influence(score="pvi", keep_share=0.85), rows)
    assert len(np.intersect1d(informative, wrong)) <= 0.15 * planted
    opposite = kept(Influence(score="pvi", keep_share=0.85, prune="highest"), rows)
    assert len(np.intersect1d(opposite, wrong)) == planted


def test_a_reported_score_is_judged_once_after_so_many_epochs(life: Any) -> None:
    run = life({"method": "influence", "after_epochs": 1}, 8, 4)
    for _ in range(2):
        drawn = run.draw()
        run.report(drawn, vog=drawn.ids)
    assert sorted(run.draw().ids.tolist()) == [4, 5, 6, 7]


def test_class_and_score_are_the_columns_that_it_reads() -> None:
    assert Influence(score="tracin", within="label").static == ("tracin", "label")
    assert Influence(within="label").static == ("label",)
    assert Influence(score="tracin").derived == ()


@pytest.mark.parametrize("bad", [{"keep_share": 0}, {"prune": "most"}, {"temperature": 0}, {"within": ""}])
def test_parameters_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Influence.parse(bad)
