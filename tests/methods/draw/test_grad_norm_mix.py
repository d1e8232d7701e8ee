"""The data half of PA&DA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from steelyard_server.core.events import IdsRetired
from steelyard_server.policies.draw.grad_norm_mix import GradNormMix
from steelyard_server.policies.draw.rows import Moment, Rows
from steelyard_server.policies.policy import PolicyError, parse_policy

ERROR_RATE = 1e-6
"""Chance that a right draw fails a statistical test, had the seed not been fixed."""
MIX = {"method": "grad_norm_mix", "total_epochs": 4}
NORMS = np.array([0.2, 0.7, 0.6, 1.2])


def test_the_law_is_that_of_the_golden(golden: Any) -> None:
    """Half way, the second example not seen in the epoch."""
    norms = np.array([0.2, np.nan, 0.6, 1.2], np.float32)
    rows = Rows(4, np.empty(0, np.int64), {"own:norm": norms})
    weights = GradNormMix(total_epochs=8).weights(rows, Moment(step=0, epoch=4, seed=0))
    expected = golden("pa_da/grad norms .2,0(unseen),.6,1.2 tau=.5")["p"]
    assert (weights / weights.sum()).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_golden_is_drawn_when_its_epoch_comes(begin: Any, law: Any, observe: Any, golden: Any) -> None:
    """Epochs of one step, whose reports are late; those of the epoch are observed."""
    run = begin({**MIX, "refresh_steps": 1}, 4, signals={"grad_norm": [9.0] * 4})
    for _ in range(2):
        run.apply(run.draw())
        run.close_below(run.next_step)
    observe(run, [0, 2, 3], {"grad_norm": [0.2, 0.6, 1.2]})
    expected = golden("pa_da/grad norms .2,0(unseen),.6,1.2 tau=.5")["p"]
    assert law(run).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_norm_is_the_pairwise_average_of_its_values_in_the_epoch(
    begin: Any, law: Any, observe: Any
) -> None:
    run = begin({**MIX, "total_epochs": 1, "refresh_steps": 1}, 3)
    run.apply(run.draw())
    run.close_below(1)
    observe(run, [0, 1, 0], {"grad_norm": [1.0, 1.0, 5.0]})
    observe(run, [0, 2], {"grad_norm": [6.0, np.inf]})
    # ((1 + 5) / 2 + 6) / 2 = 4.5; the third was reported, but not a number.
    assert law(run).tolist() == pytest.approx([4.5 / 5.5, 1 / 5.5, 0.0], rel=1e-6)


def test_batches_are_drawn_with_replacement_by_the_law(begin: Any, observe: Any) -> None:
    norms = np.random.default_rng(3).gamma(1.0, size=30)
    run = begin({**MIX, "total_epochs": 2, "refresh_steps": 1}, 30, batch_size=6000)
    run.apply(run.draw())
    run.close_below(1)
    observe(run, np.arange(30), {"grad_norm": norms})
    expected = (0.5 * norms / norms.sum() + 0.5 / 30) * 6000
    counts = np.bincount(run.draw().ids, minlength=30)
    assert float(((counts - expected) ** 2 / expected).sum()) < stats.chi2.isf(ERROR_RATE, 29)


# ---- what it is for ----


def test_it_goes_from_uniform_to_proportional_over_the_epochs(
    begin: Any, law: Any, train: Any, observe: Any
) -> None:
    run = begin(MIX, 4, batch_size=4)
    away = []
    for epoch in range(7):
        tau = min(epoch / 4, 1.0)
        expected = tau * NORMS / NORMS.sum() + (1 - tau) / 4
        assert law(run).tolist() == pytest.approx(expected.tolist(), rel=1e-5), epoch
        away.append(float(np.abs(law(run) - NORMS / NORMS.sum()).sum()))
        # An epoch is one step here. Those that are not in its batch are looked at besides.
        train(run, 1, lambda ids, step: NORMS[ids], signal="grad_norm")
        observe(run, np.arange(4), {"grad_norm": NORMS})
    assert away[:5] == sorted(away[:5], reverse=True)
    assert away[4] < 1e-6


def test_what_was_not_seen_in_an_epoch_has_the_uniform_share_alone(begin: Any, law: Any, train: Any) -> None:
    run = begin({**MIX, "refresh_steps": 2}, 40, batch_size=8)
    batches = train(run, 2, lambda ids, step: np.ones(len(ids)), signal="grad_norm")
    seen = np.zeros(40, bool)
    seen[np.concatenate(batches)] = True
    p = law(run)
    assert p[~seen] == pytest.approx(np.full(int((~seen).sum()), 0.75 / 40), rel=1e-5)
    assert p[seen] == pytest.approx(np.full(int(seen.sum()), 0.75 / 40 + 0.25 / seen.sum()), rel=1e-5)


def test_the_norms_of_an_epoch_are_forgotten_with_it(begin: Any, law: Any, train: Any) -> None:
    run = begin({**MIX, "refresh_steps": 1}, 4, signals={"grad_norm": [0.0, 0.0, 0.0, 1e30]})
    for _ in range(2):
        run.apply(run.draw())
        run.close_below(run.next_step)
    assert law(run).tolist() == pytest.approx([0.25] * 4), "an epoch without a report is uniform"


def test_retired_examples_take_no_share(begin: Any, law: Any, observe: Any) -> None:
    run = begin({**MIX, "total_epochs": 2, "refresh_steps": 1}, 4)
    run.apply(run.draw())
    run.close_below(1)
    observe(run, np.arange(4), {"grad_norm": [1.0, 1.0, 2.0, 100.0]})
    run.apply(IdsRetired(np.array([3])))
    expected = [0.125 + 1 / 6, 0.125 + 1 / 6, 0.25 + 1 / 6, 0.0]
    assert law(run).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("config", [{"total_epochs": 0}, {"signal": ""}, {"floor": -0.5}])
def test_parameters_out_of_range_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=f"draw.{next(iter(config))}"):
        parse_policy({"method": "grad_norm_mix", **config}, {"method": "uniform"})


def test_only_where_the_losses_are_its_norms_are_they_refused_as_weights() -> None:
    parse_policy({"method": "grad_norm_mix"}, {"method": "linupper"})
    with pytest.raises(PolicyError, match="the draw reads each reported loss"):
        parse_policy({"method": "grad_norm_mix", "signal": "loss"}, {"method": "linupper"})
