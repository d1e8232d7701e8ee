"""The cycle by torch.multinomial, which adds all weights up for each draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tests.benchmarks.programs import cycles
from tests.benchmarks.programs.cycles import Case

LIMIT = 2**24
"""It takes no more weights."""


def cases_of(size: int) -> Mapping[str, Callable[[], Case]]:
    if size > LIMIT:
        return {}
    return {"with replacement": lambda: _case(size, True), "distinct": lambda: _case(size, False)}


def _case(size: int, replacement: bool) -> Case:
    weights = torch.from_numpy(cycles.all_scores(size))

    def draw(batch: int) -> Any:
        return torch.multinomial(weights, batch, replacement=replacement)

    return Case(draw, weights.__setitem__, torch.from_numpy)


def told() -> str:
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    cycles.main(cases_of, told)
