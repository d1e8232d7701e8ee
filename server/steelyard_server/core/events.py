"""The events of a run: everything that can change it. A run is the fold of these, in journal order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RunCreated:
    """First event of every journal. `spec` is the validated run specification as plain JSON values."""

    spec: Mapping[str, Any]
    dataset_size: int


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """`policy` replaces the run's from the next draw on. Plain JSON values: {"draw": {...}, "mix": {...}, "weigh":
    {...}}; one that is not there stays what it is."""

    policy: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class ColumnSet:
    """New values of a static column at `ids`."""

    name: str
    ids: Ids
    values: Float32s


@dataclass(frozen=True, slots=True)
class DatasetGrown:
    """The dataset has `size` ids from here on."""

    size: int


@dataclass(frozen=True, slots=True, eq=False)
class IdsRetired:
    """`ids` are never drawn again."""

    ids: Ids


@dataclass(frozen=True, slots=True, eq=False)
class BatchDrawn:
    """What was served at `step`, in batch order, with the law it was drawn from.

    `probability` is None where every id had `uniform_probability`, which is 1 / (number of drawable examples).
    `draw_state` is what the draw carries from one step to the next (the place in the epoch of a shuffle), as plain
    JSON values. `weight` is what the draw gives each, float32[B]; None where that is 1.
    """

    step: int
    ids: Ids
    probability: Float64s | None
    uniform_probability: float
    state_version: int
    digest: int
    draw_state: Mapping[str, Any] = field(default_factory=dict)
    weight: Float32s | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LossesReported:
    """Signals of positions offset..offset+count-1 of a step's batch, each float32[count]."""

    step: int
    offset: int
    signals: Mapping[str, Float32s]


@dataclass(frozen=True, slots=True, eq=False)
class SignalsObserved:
    """Signals of ids that were not drawn: as of `step`, or, where it is None, folded at once."""

    step: int | None
    ids: Ids
    signals: Mapping[str, Float32s]


@dataclass(frozen=True, slots=True)
class StepClosed:
    """No further report of `step` will be folded. `reason` is "timeout" or "owner"."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class AttemptBegan:
    """A launch of the training job, its world size and the step that it goes on from."""

    token: str
    world_size: int
    start_step: int


@dataclass(frozen=True, slots=True)
class Bookmarked:
    """`name` holds `step`; a None step takes the name away."""

    name: str
    step: int | None


Event = (
    RunCreated
    | PolicyChanged
    | ColumnSet
    | DatasetGrown
    | IdsRetired
    | BatchDrawn
    | LossesReported
    | SignalsObserved
    | StepClosed
    | AttemptBegan
    | Bookmarked
)
