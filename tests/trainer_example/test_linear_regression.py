import numpy as np
import pytest
from linear_regression import RULES, measure


@pytest.fixture(scope="module")
def losses() -> dict[tuple[str, str], float]:
    """Mean test loss over three fixed seeds, by rule and kind of labels."""
    return {key: float(np.mean(values)) for key, values in measure(seeds=3).items()}


def test_with_clean_labels_linupper_is_first_and_quadratic_second(
    losses: dict[tuple[str, str], float],
) -> None:
    order = ["linupper r=1", "quadratic r=1", "uniform", "extremes r=1"]
    assert sorted(order, key=lambda rule: losses[rule, "clean"]) == order


def test_label_noise_makes_linupper_worse_than_uniform(losses: dict[tuple[str, str], float]) -> None:
    noisy = {rule: losses[rule, "5 % outliers"] for rule in RULES}
    assert noisy["linupper r=0.4"] > noisy["linupper r=1"] > noisy["uniform"]
    assert max(noisy, key=lambda rule: noisy[rule]) == "linupper r=0.4"
