"""Any numbers that may come: what hypothesis tries, the same ones on every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

EXAMPLES = 40
LARGEST = float(np.float32(3e38))

losses: st.SearchStrategy[float] = st.one_of(
    st.floats(0, 20, width=32),
    st.floats(-LARGEST, LARGEST, width=32),
    st.sampled_from([0.0, 1.0, 1e-30, 1e30, -1e30, LARGEST]),
)
"""Finite numbers of float32: mostly losses as they are, and whatever else there is."""

unknown_too: st.SearchStrategy[float] = st.one_of(losses, st.just(float("nan")))
"""What a column may hold: NaN where nothing is known."""


def try_all(
    *strategies: st.SearchStrategy[Any], examples: int = EXAMPLES
) -> Callable[[Callable[..., None]], None]:
    """As a decorator: calls a function with one value of each strategy, so many times over."""

    def run(function: Callable[..., None]) -> None:
        fixed = settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            # No search for a smaller example: it would take longer than all the rest.
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        fixed(given(*strategies)(function))()

    return run
