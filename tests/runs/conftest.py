"""A run without a server: events in, state out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelyard_server.core.events import LossesReported, RunCreated
from steelyard_server.runs.spec import parse_spec
from steelyard_server.runs.state import RunState

SCORED = {"method": "scored", "sampling": "independent"}


@pytest.fixture
def make_run() -> Callable[..., RunState]:
    def make(size: int = 40, **values: Any) -> RunState:
        base = {
            "name": "r",
            "dataset": "d",
            "batch_size": 6,
            "seed": 1,
            "draw": SCORED,
            "weigh": {"method": "uniform"},
        }
        return RunState(RunCreated(parse_spec({**base, **values}).model_dump(mode="json"), size))

    return make


@pytest.fixture
def losses_of() -> Callable[..., LossesReported]:
    def losses(step: int, values: Any, offset: int = 0) -> LossesReported:
        return LossesReported(step, offset, {"loss": np.array(values, np.float32)})

    return losses
