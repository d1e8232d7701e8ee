"""The cycle by cpprb's prioritised buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from cpprb import PrioritizedReplayBuffer  # type: ignore[import-not-found]

from tests.benchmarks.programs import cycles
from tests.benchmarks.programs.cycles import Case


def cases_of(size: int) -> Mapping[str, Callable[[], Case]]:
    return {"PrioritizedReplayBuffer": lambda: _buffer(size)}


def _buffer(size: int) -> Case:
    """It keeps one byte an example, the least that it can be told to, and makes importance weights in its sample."""
    buffer = PrioritizedReplayBuffer(size, {"a": {"dtype": np.uint8}}, alpha=1.0, eps=0.0)
    for _, values in cycles.chunks(size):
        buffer.add(a=np.zeros(len(values), np.uint8), priorities=values)

    def draw(batch: int) -> Any:
        return buffer.sample(batch, beta=0.4)["indexes"]

    return Case(draw, buffer.update_priorities)


def told() -> str:
    return f"cpprb {version('cpprb')}, numpy {np.__version__}, 1 thread"


if __name__ == "__main__":
    cycles.main(cases_of, told)
