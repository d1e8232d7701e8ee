"""The cycle by a cumulative sum that is made anew for each draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.benchmarks.programs import cycles
from tests.benchmarks.programs.cycles import Case


def cases_of(size: int) -> Mapping[str, Callable[[], Case]]:
    return {"cumsum, searchsorted": lambda: _case(size)}


def _case(size: int) -> Case:
    weights = cycles.all_scores(size)
    ends = np.empty(size, np.float64)
    rng = np.random.default_rng(3)

    def draw(batch: int) -> Any:
        np.cumsum(weights, out=ends)
        return np.searchsorted(ends, rng.random(batch) * ends[-1], side="right")

    return Case(draw, weights.__setitem__)


def told() -> str:
    return f"numpy {np.__version__}, 1 thread"


if __name__ == "__main__":
    cycles.main(cases_of, told)
