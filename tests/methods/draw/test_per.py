"""Prioritised experience replay. The importance weights that undo it are those of the weigh rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from steelyard_server.core.events import DatasetGrown
from steelyard_server.policies.policy import PolicyError, parse_policy

LOSSES = [0.5, 1.0, 2.0, 4.0]
ERROR_RATE = 1e-6
"""Chance that a right draw fails a statistical test, had the seed not been fixed."""


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("per/dqn_zoo alpha=0.6 beta=0.4 usp=0.0", {"floor": 0.0}),
        ("per/dqn_zoo alpha=0.6 beta=0.4 usp=0.001", {}),
        ("per/rank-based alpha=0.7 (formula from memory of paper)", {"form": "rank", "floor": 0.0}),
    ],
)
def test_the_law_is_that_of_the_golden(begin: Any, law: Any, golden: Any, name: str, config: Any) -> None:
    run = begin({"method": "per", **config}, 4, signals={"loss": LOSSES})
    assert law(run).tolist() == pytest.approx(golden(name)["p"], abs=1e-6)


@pytest.mark.parametrize("beta", [0.4, 1.0])
def test_the_probabilities_that_are_told_give_the_weights_of_the_golden(
    begin: Any, law: Any, golden: Any, beta: float
) -> None:
    run = begin({"method": "per", "floor": 0.0}, 4, signals={"loss": LOSSES})
    weights = (1 / (4 * law(run))) ** beta
    expected = golden(f"per/dqn_zoo alpha=0.6 beta={beta} usp=0.0")
    assert weights.tolist() == pytest.approx(expected["w_unnormalised"], abs=2e-6)
    assert (weights / weights.max()).tolist() == pytest.approx(expected["w_norm_by_batch_max"], abs=2e-6)


@pytest.mark.parametrize("sampling", ["independent", "stratified"])
@pytest.mark.parametrize("form", ["proportional", "rank"])
def test_batches_follow_the_formula(begin: Any, form: str, sampling: str) -> None:
    losses = np.random.default_rng(1).gamma(1.0, size=40)
    config = {"method": "per", "form": form, "alpha": 0.6, "floor": 0.1, "sampling": sampling}
    run = begin(config, 40, batch_size=100, signals={"loss": losses})
    basis = losses if form == "proportional" else 1 / stats.rankdata(-losses)
    powers = basis**0.6
    expected = (0.9 * powers / powers.sum() + 0.1 / 40) * 100 * 200
    counts = np.zeros(40)
    for _ in range(200):
        drawn = run.draw()
        run.apply(drawn)
        counts += np.bincount(drawn.ids, minlength=40)
        run.close_below(run.next_step)
    # Stratified draws vary less than independent ones, for which this is the right bound.
    assert float(((counts - expected) ** 2 / expected).sum()) < stats.chi2.isf(ERROR_RATE, 39)


def test_a_new_example_has_the_greatest_priority_ever_seen_and_1_before_any(
    begin: Any, law: Any, observe: Any
) -> None:
    run = begin({"method": "per", "alpha": 1.0, "floor": 0.0}, 4)
    observe(run, [0], {"loss": [0.25]})
    assert law(run).tolist() == pytest.approx([0.25 / 3.25, *[1 / 3.25] * 3], rel=1e-6)
    observe(run, [1], {"loss": [8.0]})
    observe(run, [1], {"loss": [0.25]})
    run.apply(DatasetGrown(5))
    assert law(run).tolist() == pytest.approx([0.25 / 24.5, 0.25 / 24.5, *[8 / 24.5] * 3], rel=1e-6)


def test_by_rank_new_examples_come_first(begin: Any, law: Any, observe: Any) -> None:
    run = begin({"method": "per", "form": "rank", "alpha": 1.0, "floor": 0.0}, 4)
    observe(run, [0, 1], {"loss": [1.0, 9.0]})
    harmonic = 1 + 1 / 2 + 1 / 3 + 1 / 4
    assert law(run) * harmonic == pytest.approx([1 / 4, 1 / 3, 3 / 4, 3 / 4], rel=1e-6)


def test_a_priority_of_0_is_drawn_by_the_uniform_share_alone(begin: Any, law: Any) -> None:
    run = begin({"method": "per", "floor": 0.1}, 4, signals={"loss": [0.0, 0.0, 1.0, 3.0]})
    assert law(run)[:2].tolist() == pytest.approx([0.025, 0.025], rel=1e-6)


def test_the_ranks_are_unmoved_by_an_outlier_and_the_priorities_are_not(begin: Any, law: Any) -> None:
    def law_of(form: str, greatest: float) -> Any:
        config = {"method": "per", "form": form, "floor": 0.0}
        return law(begin(config, 4, signals={"loss": [0.5, 1.0, 2.0, greatest]}))

    assert law_of("rank", 1e30).tolist() == law_of("rank", 4.0).tolist()
    assert law_of("proportional", 1e30)[:3].sum() < 1e-7 < law_of("proportional", 4.0)[:3].sum()


# ---- what it is for ----


def steps_until_learned(begin: Any, train: Callable[..., Any], config: Any) -> int:
    """Some of 300 examples are hard: each draw takes a tenth of a loss away. Steps until no loss is above 1."""
    losses = np.full(300, 0.02)
    losses[::30] = 8.0

    def loss_of(ids: Any, step: int) -> Any:
        before = losses[ids].copy()
        losses[ids] *= 0.9
        return before

    run = begin(config, 300, batch_size=16)
    for steps in range(1, 2000):
        train(run, 1, loss_of)
        if losses.max() < 1.0:
            return steps
    return 2000


def test_what_is_hard_comes_more_often_so_that_it_is_learned_sooner_than_by_a_shuffle(
    begin: Any, train: Any
) -> None:
    prioritised = steps_until_learned(begin, train, {"method": "per"})
    shuffled = steps_until_learned(begin, train, {"method": "shuffle"})
    opposite = steps_until_learned(begin, train, {"method": "per", "alpha": 0.0, "floor": 0.0})
    # Twenty draws of each are needed: by a shuffle those are twenty epochs.
    assert shuffled > 19 * 300 / 16 - 19
    assert prioritised < shuffled / 2
    assert opposite > shuffled / 2


# ---- what is refused ----


@pytest.mark.parametrize(
    "config", [{"alpha": -0.1}, {"alpha": float("nan")}, {"form": "ranks"}, {"floor": 1.0}, {"signal": ""}]
)
def test_parameters_out_of_range_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=f"draw.{next(iter(config))}"):
        parse_policy({"method": "per", **config}, {"method": "uniform"})


def test_losses_are_not_weighed_by_as_well_unless_it_undoes_the_draw() -> None:
    with pytest.raises(PolicyError, match="the draw reads last_loss and the weigher reads the losses again"):
        parse_policy({"method": "per"}, {"method": "linupper"})
    parse_policy({"method": "per"}, {"method": "importance", "beta": 0.4})
    parse_policy({"method": "per", "signal": "td_error"}, {"method": "linupper"})
