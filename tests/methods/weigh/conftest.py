"""Small problems that are really trained, with the weights that a rule gives, as a server would give them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from steelyard import weigh

Floats = npt.NDArray[np.float64]

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "trainer_example"))


@pytest.fixture
def regression() -> Callable[..., float]:
    """regression(rule, outlier_share): test loss of the example's linear regression, mean over three seeds."""
    from linear_regression import train

    def mean(rule: Mapping[str, Any], outlier_share: float = 0.0) -> float:
        return float(np.mean([train(rule, outlier_share, seed) for seed in range(3)]))

    return mean


@pytest.fixture
def fit() -> Callable[..., Floats]:
    return _fit


def _fit(
    config: Mapping[str, Any],
    inputs: Floats,
    labels: Floats,
    *,
    steps: int = 300,
    batch: int = 64,
    rate: float = 0.05,
    logistic: bool = False,
    columns: Mapping[str, Floats] | None = None,
    seed: int = 0,
) -> Floats:
    """The parameters that gradient descent finds from 0, on batches drawn evenly; all rules see the same ones.

    Squared loss, or the logistic one for labels of -1 and 1. What the rule remembers goes on from step to step.
    """
    rule = weigh.parse(config)
    generator = np.random.Generator(np.random.Philox(seed))
    estimate, past = np.zeros(inputs.shape[1]), None
    for step in range(steps):
        ids = generator.integers(len(inputs), size=batch)
        answers = inputs[ids] @ estimate
        if logistic:
            losses = np.logaddexp(0.0, -labels[ids] * answers)
            slopes = -labels[ids] / (1.0 + np.exp(labels[ids] * answers))
        else:
            losses = (answers - labels[ids]) ** 2
            slopes = 2.0 * (answers - labels[ids])
        known = {name: column[ids] for name, column in (columns or {}).items()}
        more: Any = {"step": step, "columns": known, "past": past, "seed": seed, "examples": len(inputs)}
        weights = weigh.weights(losses, rule, **more)
        past = weigh.remember(rule, losses, **more)
        estimate -= rate * (weights * slopes) @ inputs[ids] / batch
    return estimate
