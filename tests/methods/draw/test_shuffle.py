"""The shuffle. That epochs are permutations, also where the dataset grows, and its bits: tests/policies/test_shuffle.py
and tests/core/test_permutation.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from steelyard_server.policies.policy import PolicyError, parse_policy


def test_each_example_comes_once_an_epoch_in_another_order_each_and_by_loss_it_would_not(
    begin: Any, train: Any
) -> None:
    losses = np.random.default_rng(1).gamma(0.3, size=60)
    epochs = {}
    for method in ("shuffle", "scored"):
        run = begin({"method": method}, 60, batch_size=6)
        batches = train(run, 30, lambda ids, step: losses[ids])
        epochs[method] = [np.concatenate(batches[start : start + 10]) for start in (0, 10, 20)]
    assert all(sorted(epoch.tolist()) == list(range(60)) for epoch in epochs["shuffle"])
    assert all(len(set(epoch.tolist())) < 55 for epoch in epochs["scored"][1:])
    assert len({tuple(epoch.tolist()) for epoch in epochs["shuffle"]}) == 3


def test_each_place_of_a_batch_is_as_likely_for_each_id(begin: Any) -> None:
    """A right shuffle fails by chance once in 10^6 seeds."""
    counts = np.zeros((8, 8))
    for seed in range(800):
        counts[np.arange(8), begin({"method": "shuffle"}, 8, seed=seed).draw().ids] += 1
    assert float(((counts - 100) ** 2 / 100).sum()) < stats.chi2.isf(1e-6, 49)


def test_never_reported_examples_come_like_any_other(begin: Any) -> None:
    reported = begin({"method": "shuffle"}, 20, signals={"loss": np.arange(20.0)})
    never = begin({"method": "shuffle"}, 20)
    assert reported.draw().ids.tolist() == never.draw().ids.tolist()


def test_it_has_no_parameters_and_leaves_the_losses_to_the_weights() -> None:
    with pytest.raises(PolicyError, match="method 'shuffle' has no field 'alpha'"):
        parse_policy({"method": "shuffle", "alpha": 1}, {"method": "uniform"})
    parse_policy({"method": "shuffle"}, {"method": "linupper"})
