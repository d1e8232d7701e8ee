"""A small training for mix rules: batches are drawn by the masses, and groups learn from what they get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from steelyard_server.policies.mix import GroupReport, Mix, State


@dataclass
class Training:
    """What happened: a row a step."""

    shares: Any
    """float64[T, K]: by which law the groups of each step were drawn."""
    efforts: Any
    """float64[T, K]: rows that each group had had before the step."""
    values: Any
    """float64[T, K]: the noiseless value that each group reported, or would have."""
    state: State


@pytest.fixture
def report_of() -> Callable[..., GroupReport]:
    """One row a group: report_of(sizes, loss=[...]); a NaN where a group reports nothing."""

    def one(sizes: Any, step: int = 0, **values: Any) -> GroupReport:
        arrays = {name: np.array(column, np.float64) for name, column in values.items()}
        return GroupReport(step, np.arange(len(sizes)), arrays, np.array(sizes))

    return one


@pytest.fixture
def train() -> Callable[..., Training]:
    """train(rule, sizes, value_of, steps): value_of(efforts, step) gives each group's value of the rule's signal."""

    def simulate(
        rule: Mix,
        sizes: Any,
        value_of: Callable[[Any, int], Any],
        steps: int,
        *,
        batch: int = 64,
        noise: float = 0.0,
        columns: Mapping[str, Any] | None = None,
        seed: int = 7,
    ) -> Training:
        rng, sizes = np.random.default_rng(seed), np.array(sizes)
        state, effort = rule.start(sizes), np.zeros(len(sizes))
        shares, efforts, reported = [], [], []
        for step in range(steps):
            masses = np.where(sizes > 0, rule.masses(state, sizes, step), 0.0)
            share = masses / masses.sum()
            # A comb: each group gets floor or ceil of its share of the batch.
            places = (np.arange(batch) + rng.random()) / batch
            groups = np.minimum(np.searchsorted(np.cumsum(share), places), len(sizes) - 1)
            value = np.asarray(value_of(effort, step), np.float64)
            values = {name: value[groups] + noise * rng.normal(size=batch) for name in rule.signals}
            values |= {name: np.asarray(column)[groups] for name, column in (columns or {}).items()}
            shares.append(share)
            efforts.append(effort.copy())
            reported.append(value)
            effort += np.bincount(groups, minlength=len(sizes))
            state = rule.update(state, GroupReport(step, groups, values, sizes))
        return Training(np.array(shares), np.array(efforts), np.array(reported), state)

    return simulate
