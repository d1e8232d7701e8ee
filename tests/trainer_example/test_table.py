import numpy as np
import pytest
from scipy import stats
from table import STUDENT, half_width, held_out_table, verdict

SPREAD = np.array([-0.01, 0.0, 0.01])


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        (-0.1 + SPREAD, "is better than uniform"),
        (+0.1 + SPREAD, "is not better than uniform on this text: its held-out loss is higher"),
        (-0.01 + SPREAD, "is not shown to be better"),
        (np.array([-0.1]), "One seed cannot tell"),
    ],
)
def test_the_verdict_follows_the_differences(differences: np.ndarray, words: str) -> None:
    assert words in verdict(differences)


def test_the_interval_is_students() -> None:
    assert np.allclose(STUDENT, stats.t.ppf(0.975, np.arange(1, len(STUDENT) + 1)), atol=6e-4)
    differences = np.array([0.1, 0.3, 0.2, 0.7])
    low, high = stats.t.interval(0.95, 3, differences.mean(), stats.sem(differences))
    assert half_width(differences) == pytest.approx((high - low) / 2, rel=1e-3)


def test_differences_are_paired_by_seed() -> None:
    curves = {"uniform": np.array([[1.0], [2.0]]), "linupper": np.array([[1.5], [2.5]])}
    row = held_out_table([10], curves).splitlines()[1]
    assert row.split() == ["10", "1.5000", "±", "0.7071", "2.0000", "±", "0.7071", "+0.5000", "±", "0.0000"]
