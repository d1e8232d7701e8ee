"""The seed paper's numbers, as its authors' own code computed them, to six digits."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelyard.weigh import METHODS, parse, weights

GOLDENS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "goldens.json").read_text(encoding="utf-8")
)
SIX_DIGITS = 0.51e-6
LOSSES = np.array([0.5, 1.0, 2.0, 4.0])

BATCHES = [name for name in GOLDENS if re.fullmatch(r"seed/[^/]+/r=[0-9.]+", name)]
EVEN = [name for name in GOLDENS if re.fullmatch(r"seed/[^/]+/(all-equal|single)", name)]
REPLAY = [name for name in GOLDENS if name.startswith("per/dqn_zoo")]
TRAP = "seed/README-uniform-branch r=1 (trap)"
SCALAR = "seed/scalar linupper r=0.4, 2 ranks, equal len"


def method_of(name: str) -> str:
    return name.split("/")[1].split("(")[0]


def test_every_golden_of_the_seed_paper_is_tested() -> None:
    assert {*BATCHES, *EVEN, TRAP, SCALAR} == {name for name in GOLDENS if name.startswith("seed/")}
    assert len(BATCHES) == 8
    assert len(EVEN) == 8
    assert len(REPLAY) == 3


@pytest.mark.parametrize("name", BATCHES)
def test_weights_are_those_of_the_authors(name: str) -> None:
    config = {"method": method_of(name), "r": float(name.rsplit("=", 1)[1])}
    result = weights(LOSSES, config)
    np.testing.assert_allclose(result, GOLDENS[name]["w_sumB"], rtol=0, atol=SIX_DIGITS)
    np.testing.assert_allclose(result / len(LOSSES), GOLDENS[name]["w_sum1"], rtol=0, atol=SIX_DIGITS)
    single = weights(LOSSES.astype(np.float32), config)
    np.testing.assert_allclose(single, result, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", BATCHES)
def test_scores_are_those_of_the_authors(name: str) -> None:
    rule: Any = parse({"method": method_of(name)})
    scores = rule.score(np, np.array(GOLDENS[name]["h"]))
    np.testing.assert_allclose(scores, GOLDENS[name]["f"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", EVEN)
def test_equal_losses_and_a_single_one_weigh_the_same(name: str) -> None:
    expected = np.array(GOLDENS[name]["w_sum1"])
    for loss in (0.0, 2.7, -1e30):
        result = weights(np.full(len(expected), loss), {"method": method_of(name), "r": 0.4})
        np.testing.assert_array_equal(result, expected * len(expected))


def test_uniform_does_not_fall_into_the_trap_of_the_readme() -> None:
    # The README's "uniform" sends the normalised losses through the softmax: its numbers are far from uniform.
    h = np.array(GOLDENS["seed/linupper/r=1.0"]["h"])
    trap = np.exp(h) / np.exp(h).sum()
    np.testing.assert_allclose(trap, GOLDENS[TRAP]["w_sum1"], rtol=0, atol=2e-6)
    np.testing.assert_array_equal(weights(LOSSES, {"method": "uniform"}), np.ones(4))


@pytest.mark.parametrize(("step", "ranks", "whole"), [(0, "burnin", "global_burnin"), (1, "fsdp", "fsdp")])
def test_the_mean_over_two_ranks_is_the_authors_objective(step: int, ranks: str, whole: str) -> None:
    result = weights(LOSSES, {"method": "linupper", "r": 0.4, "warmup_steps": 1}, step=step)
    per_rank = (result * LOSSES).reshape(2, 2).mean(axis=1)
    expected = GOLDENS[SCALAR]
    whole = whole if whole in expected else f"global_after_ddp_mean_{whole}"
    np.testing.assert_allclose(per_rank, expected[f"per_rank_{ranks}"], rtol=0, atol=SIX_DIGITS)
    assert per_rank.mean() == pytest.approx(expected[whole], abs=SIX_DIGITS)


@pytest.mark.parametrize("name", REPLAY)
def test_importance_weights_are_those_of_prioritised_replay(name: str) -> None:
    alpha, beta, floor = (float(one.split("=")[1]) for one in name.split()[1:])
    p = LOSSES**alpha / (LOSSES**alpha).sum()
    p = (1 - floor) * p + floor / 4
    np.testing.assert_allclose(p, GOLDENS[name]["p"], rtol=0, atol=SIX_DIGITS)
    for normalise, key in (("none", "w_unnormalised"), ("batch_max", "w_norm_by_batch_max")):
        config = {"method": "importance", "beta": beta, "normalise": normalise}
        result = weights(LOSSES, config, probability=p, examples=4)
        np.testing.assert_allclose(result, GOLDENS[name][key], rtol=0, atol=SIX_DIGITS)


def test_importance_weights_are_those_of_katharopoulos() -> None:
    expected = GOLDENS["katharopoulos/weights k=1.0 scores=[.5,1,2,4], one draw of each"]
    result = weights(LOSSES, {"method": "importance"}, probability=LOSSES / LOSSES.sum(), examples=4)
    np.testing.assert_allclose(result, expected["w"], rtol=0, atol=SIX_DIGITS)


def test_the_methods_are_those_that_policies_may_name() -> None:
    assert [name for name in METHODS if METHODS.is_built_in(name)] == [
        *("uniform", "linupper", "quadratic", "extremes", "upper", "kl_dro", "loss_rank_slice", "importance"),
        *("importance_resample", "infobatch_rescale", "focal", "self_paced", "selective_backprop", "top_k"),
        *("rho_loss", "reducr", "linear_curriculum", "mask_top"),
    ]
