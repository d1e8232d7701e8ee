"""Where weighing by loss helps and where it harms, in a problem small enough to see why: linear regression.

Nine in ten examples lie in 5 of 20 dimensions and are learnt at once; the other tenth spans all of them. Rules that
favour high losses find that tenth. With 5 % of the labels replaced by noise they find the noise, and follow it.

    python trainer_example/linear_regression.py

A few seconds. Prints the loss on clean test examples after 400 steps, mean and standard deviation over ten seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard import weigh

DIMENSIONS, EASY_DIMENSIONS, EASY_SHARE = 20, 5, 0.9
BATCH, STEPS, LEARNING_RATE, SEEDS = 64, 400, 0.02, 10
OUTLIER_SCALE = 10.0  # standard deviation of a label that is noise
TEST_EXAMPLES = 2000

RULES: Mapping[str, Mapping[str, Any]] = {
    "uniform": {"method": "uniform"},
    "linupper r=1": {"method": "linupper", "r": 1.0},
    "linupper r=0.4": {"method": "linupper", "r": 0.4},
    "quadratic r=1": {"method": "quadratic", "r": 1.0},
    "quadratic r=0.4": {"method": "quadratic", "r": 0.4},
    "extremes r=1": {"method": "extremes", "r": 1.0},
    "extremes r=0.4": {"method": "extremes", "r": 0.4},
}
OUTLIER_SHARES = {"clean": 0.0, "5 % outliers": 0.05}


def examples(count: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Inputs, float64[count, 20]: most are zero outside the first five dimensions."""
    inputs = generator.normal(size=(count, DIMENSIONS))
    inputs[generator.random(count) < EASY_SHARE, EASY_DIMENSIONS:] = 0.0
    return inputs


def train(rule: Mapping[str, Any], outlier_share: float, seed: int) -> float:
    """Mean squared error on clean test examples after training with `rule`. All rules see the same examples."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=DIMENSIONS)
    test = examples(TEST_EXAMPLES, generator)
    estimate = np.zeros(DIMENSIONS)
    for step in range(STEPS):
        inputs = examples(BATCH, generator)
        noise = generator.normal(scale=OUTLIER_SCALE, size=BATCH)
        labels = np.where(generator.random(BATCH) < outlier_share, noise, inputs @ truth)
        errors = inputs @ estimate - labels
        weights = weigh.weights(errors**2, rule, step=step)
        estimate -= LEARNING_RATE * 2 * (weights * errors) @ inputs / BATCH
    return float(np.mean((test @ (estimate - truth)) ** 2))


def measure(seeds: int = SEEDS) -> dict[tuple[str, str], npt.NDArray[np.float64]]:
    """The test loss of every seed, by rule and kind of labels: float64[seeds]."""
    return {
        (rule, labels): np.array([train(config, share, seed) for seed in range(seeds)])
        for rule, config in RULES.items()
        for labels, share in OUTLIER_SHARES.items()
    }


def main() -> None:
    measured = measure()
    print(f"{'test loss':<16}" + "".join(f"{labels:>20}" for labels in OUTLIER_SHARES))
    for rule in RULES:
        cells = (measured[rule, labels] for labels in OUTLIER_SHARES)
        print(f"{rule:<16}" + "".join(f"{f'{c.mean():.3f} ± {c.std(ddof=1):.3f}':>20}" for c in cells))


if __name__ == "__main__":
    main()
