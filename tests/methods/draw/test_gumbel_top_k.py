"""Gumbel top-k: the law of softmax sampling without replacement, budgets of tokens, quotas of groups, the bottom."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.optimize import linprog
from scipy.stats import chi2, wasserstein_distance

from steelyard.signals import calibrated_gradient
from steelyard_server.policies.draw.engines.choice import standardised
from steelyard_server.policies.draw.gumbel_top_k import GumbelTopK
from steelyard_server.policies.draw.rows import Moment, Rows
from steelyard_server.policies.policy import PolicyError, parse_policy

NAN = float("nan")


def kept(draw: GumbelTopK, rows: Rows, seed: int = 7) -> list[int]:
    return np.flatnonzero(draw.judge(rows, Moment(0, 0, seed)).mask).tolist()


def law_of_sets(weights: Any, k: int) -> dict[tuple[int, ...], float]:
    """The chance of each set of k when one after the other is drawn in proportion to its weight and taken away."""
    chances: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(len(weights)), k):
        chance, left = 1.0, float(np.sum(weights))
        for example in order:
            chance *= weights[example] / left
            left -= weights[example]
        chances[tuple(sorted(order))] = chances.get(tuple(sorted(order)), 0.0) + chance
    return chances


def excess(draw: GumbelTopK, rows: Rows, weights: Any, seeds: int) -> float:
    """Chi-square of the sets that are kept against the law of these weights."""
    law = law_of_sets(weights, 2)
    seen = Counter(tuple(kept(draw, rows, seed)) for seed in range(seeds))
    return sum((seen[one] - seeds * chance) ** 2 / (seeds * chance) for one, chance in law.items())


def test_what_is_kept_follows_softmax_sampling_without_replacement(rows_of: Callable[..., Rows]) -> None:
    scores = np.array([0.0, 0.5, 1.0, 1.5, -0.5])
    rows = rows_of(log_weight=scores)
    # 10 sets, 9 degrees: above this in one of 10^5 draws of seeds.
    limit = float(chi2.ppf(1 - 1e-5, 9))
    draw = GumbelTopK(k=2, temperature=0.5)
    assert excess(draw, rows, np.exp(scores / 0.5), 2000) < limit
    # The law of another temperature, or of a draw that only ranks, is told from it.
    assert excess(draw, rows, np.exp(scores), 2000) > 3 * limit
    assert excess(GumbelTopK(k=2, noise=False), rows, np.exp(scores), 2000) > 3 * limit


def test_ratings_are_standardised_and_the_first_pick_has_the_chance_that_the_temperature_gives(
    golden: Callable[[str], Any], rows_of: Callable[..., Rows]
) -> None:
    expected = golden("qurating/ratings -1,0,1,2 normalised, tau=1.0: first-draw p")
    rows = rows_of(log_weight=[-1, 0, 1, 2])
    draw = GumbelTopK(k=1, normalise=True)
    np.testing.assert_allclose(standardised(rows["log_weight"], rows.live), expected["z"], atol=5e-7)
    clear = GumbelTopK(k=1, normalise=True, noise=False).keys(rows, Moment(0, 0, 1))
    chances = np.exp(clear) / np.exp(clear).sum()
    np.testing.assert_allclose(chances, expected["p"], atol=5e-7)
    seeds = 2000
    seen = Counter(kept(draw, rows, seed)[0] for seed in range(seeds))
    # 3 degrees, error rate 1e-5.
    assert sum((seen[i] - seeds * p) ** 2 / (seeds * p) for i, p in enumerate(chances)) < chi2.ppf(
        1 - 1e-5, 3
    )


def test_the_noise_has_the_same_bits_in_every_version_and_on_every_machine(
    rows_of: Callable[..., Rows],
) -> None:
    rows = rows_of(log_weight=np.arange(1000) / 8)
    keys = GumbelTopK(normalise=True).keys(rows, Moment(0, 0, 2**63 + 5))
    assert hashlib.blake2b(keys.astype("<f8").tobytes(), digest_size=8).hexdigest() == "50e866c343666a03"


def test_without_noise_the_top_k_and_from_the_bottom_the_lowest(rows_of: Callable[..., Rows]) -> None:
    rows = rows_of(log_weight=[3, -1, NAN, 2, 0])
    assert kept(GumbelTopK(k=2, noise=False), rows) == [0, 3]
    assert kept(GumbelTopK(k=2, noise=False, bottom=True), rows) == [1, 4]
    assert kept(GumbelTopK(noise=False), rows) == [0, 3]
    assert kept(GumbelTopK(k=99), rows) == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1, [0]), (10, [0]), (11, [0, 1]), (30, [0, 1]), (31, [0, 1, 2]), (999, [0, 1, 2, 3])],
)
def test_a_budget_is_met_by_the_last_document_taken(
    budget: int, expected: list[int], rows_of: Callable[..., Rows]
) -> None:
    rows = rows_of(log_weight=[4, 3, 2, 1], tokens=[10, 20, 30, 40])
    assert kept(GumbelTopK(budget=budget, tokens="tokens", noise=False), rows) == expected


def test_groups_have_quotas_in_proportion_to_their_tokens(rows_of: Callable[..., Rows]) -> None:
    rng = np.random.default_rng(9)
    size = 3000
    group = rng.choice([1.0, 2.0, 7.0], size, p=[0.6, 0.3, 0.1])
    tokens = rng.integers(50, 150, size).astype(np.float32)
    # Group 7 has the best scores, so it would be all that is chosen.
    rows = rows_of(log_weight=rng.normal(size=size) + 100 * (group == 7), tokens=tokens, group=group)
    budget = 20_000
    chosen = kept(GumbelTopK(budget=budget, tokens="tokens", group="group"), rows)
    for value in (1, 2, 7):
        quota = budget * tokens[group == value].sum() / tokens.sum()
        took = tokens[chosen][group[chosen] == value].sum()
        assert quota <= took < quota + 150
    alone = kept(GumbelTopK(budget=budget, tokens="tokens"), rows)
    assert (group[alone] == 7).all()
    by_examples = kept(GumbelTopK(k=300, group="group", noise=False), rows)
    for value in (1, 2, 7):
        best = [i for i in np.argsort(-rows["log_weight"], kind="stable") if group[i] == value]
        quota_of = round(300 * len(best) / size)
        assert sorted(best[:quota_of]) == [i for i in by_examples if group[i] == value]


def test_what_lacks_a_score_a_group_or_tokens_is_left_out(rows_of: Callable[..., Rows]) -> None:
    rows = rows_of(
        log_weight=[1, NAN, 1, 1, 1], tokens=[5, 5, NAN, 5, 5], group=[0, 0, 0, NAN, 0], retired=[4]
    )
    assert kept(GumbelTopK(budget=100, tokens="tokens", group="group"), rows) == [0]


def test_importance_weights_bring_the_sample_to_the_target_and_plain_top_k_overshoots(
    rows_of: Callable[..., Rows],
) -> None:
    rng = np.random.default_rng(10)
    raw = rng.normal(0, 1, 20_000)
    # The target is normal around 1: log weight x - 1/2.
    rows = rows_of(log_weight=raw - 0.5)
    sample = raw[kept(GumbelTopK(k=1000), rows)]
    assert sample.mean() == pytest.approx(1, abs=0.15)
    assert sample.std() == pytest.approx(1, abs=0.15)
    assert raw[kept(GumbelTopK(k=1000, noise=False), rows)].std() < 0.5


def duals(candidates: Any, target: Any) -> Any:
    """The dual potentials of the candidates in optimal transport of their mass to the target's."""
    n, m = len(candidates), len(target)
    cost = np.abs(candidates[:, None] - target[None])
    constraints = np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    masses = np.r_[np.full(n, 1 / n), np.full(m, 1 / m)]
    solved = linprog(cost.ravel(), A_eq=constraints, b_eq=masses)
    return solved.eqlin.marginals[:n]


def test_the_bottom_of_calibrated_gradients_moves_the_pool_to_the_target_and_the_top_away(
    rows_of: Callable[..., Rows],
) -> None:
    rng = np.random.default_rng(14)
    candidates, target = rng.normal(0, 1.5, 60), rng.normal(2, 0.5, 20)
    gradient = calibrated_gradient(duals(candidates, target))
    rows = rows_of(gradient=gradient)
    draw = GumbelTopK(score="gradient", k=15, noise=False, bottom=True)
    bottom, top = kept(draw, rows), kept(draw.model_copy(update={"bottom": False}), rows)
    before = wasserstein_distance(candidates, target)
    assert wasserstein_distance(np.r_[candidates, candidates[bottom]], target) < before - 0.2
    assert wasserstein_distance(np.r_[candidates, candidates[top]], target) > before + 0.2
    with pytest.raises(ValueError, match="two candidates or more"):
        calibrated_gradient([1.0])


def test_the_choice_is_the_runs_and_holds_over_epochs(life: Any) -> None:
    draw = {"method": "gumbel_top_k", "k": 6}
    run = life(draw, 40, 6, columns={"log_weight": np.linspace(-1, 1, 40)})
    first = sorted(run.draw().ids.tolist())
    assert all(sorted(run.draw().ids.tolist()) == first for _ in range(5))
    other = life(draw, 40, 6, columns={"log_weight": np.linspace(-1, 1, 40)}, seed=2)
    assert sorted(other.draw().ids.tolist()) != first


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"budget": 5}, "draw: a budget needs tokens"),
        ({"budget": 5, "tokens": "t", "k": 3}, "expected k or budget, got both"),
        ({"temperature": 0}, "draw.temperature: "),
        ({"k": 0}, "draw.k: "),
    ],
)
def test_parameters_that_make_no_sense_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy({"method": "gumbel_top_k", **bad}, {"method": "uniform"})
    assert message in str(error.value)
    with pytest.raises(ValidationError):
        GumbelTopK.parse(bad)


def test_negative_numbers_of_tokens_are_refused() -> None:
    draw = GumbelTopK(tokens="tokens")
    assert draw.objection("tokens", np.array([1, -2], np.float32)) == (
        "expected numbers of tokens in tokens, got -2 at position 1"
    )
    assert draw.objection("tokens", np.array([0, 3], np.float32)) is None
    assert draw.objection("log_weight", np.array([-1], np.float32)) is None
