"""A mix that follows the step: stages, each with its own shares from where it starts.

q(t) = the normalised mix of the last stage that has started; with `interpolate` it moves in a straight line from one
stage's mix, where that starts, to the next one's, and stays at the last.

Source: upsampling of small domain sets at the end of training (Blakeney et al., 2024: the last 10-20 % of training did
best of 5-30 %), and stages that go from weak to strong labels (Mallen and Belrose, 2024). Their exact mixes are not
given here: a schedule has no default.

End-of-training upsampling of group 2 for the last fifth:
    {"method": "domain_schedule", "total_steps": 10000,
     "stages": [{"start_fraction": 0, "mix": [0.6, 0.38, 0.02]}, {"start_fraction": 0.8, "mix": [0.3, 0.2, 0.5]}]}
Weak labels first, then strong ones:
    {"method": "domain_schedule", "stages": [{"start_step": 0, "mix": [1, 0]}, {"start_step": 3000, "mix": [0, 1]}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from steelyard.source import Source
from steelyard_server.policies.mix.contract import Float64s, Int64s, Mix, SharePerGroup, State
from steelyard_server.policies.mix.shares import drawable, normalised


class Stage(BaseModel):
    """From `start_step` on, or from `start_fraction` of all steps on, the shares of `mix`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    start_step: Annotated[int, Field(ge=0)] | None = None
    start_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    mix: SharePerGroup
    """One number a group; they need not sum to 1."""

    @model_validator(mode="after")
    def _starts_once(self) -> Stage:
        if (self.start_step is None) == (self.start_fraction is None):
            raise ValueError("expected a stage to have either start_step or start_fraction")
        return self

    def start(self, total_steps: int | None) -> int:
        """The first step of the stage."""
        if self.start_step is not None:
            return self.start_step
        return int(np.rint((self.start_fraction or 0.0) * (total_steps or 0)))


class DomainSchedule(Mix):
    """A piecewise constant mix, or one that moves in straight lines."""

    source: ClassVar[Source] = Source(
        paper="Does your data spark joy? Performance gains from domain upsampling at the end of training "
        "(Blakeney et al., 2024); Balancing Label Quantity and Quality (Mallen and Belrose, 2024) for stages",
        where="the schedule that the abstract describes",
    )
    never_reported: ClassVar[str] = "Drawn like every other example of their group: reports are not read."
    example: ClassVar[Mapping[str, Any]] = {
        "stages": [{"start_step": 0, "mix": [0.6, 0.3, 0.1]}, {"start_step": 4, "mix": [0.3, 0.2, 0.5]}]
    }

    method: Literal["domain_schedule"] = "domain_schedule"
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=4096)]
    """One object a stage, {"start_step": 0, "mix": [0.6, 0.4]}, in the order of their starts; the first starts at 0.
    `mix` has one number a group; in place of `start_step`, `start_fraction` is a part of `total_steps`."""
    total_steps: Annotated[int, Field(gt=0)] | None = None
    """How many steps the training has: what a start_fraction is a fraction of."""
    interpolate: Literal["none", "linear"] = "none"
    """Between two stages: "none", a jump where the later one starts, or "linear"."""

    @model_validator(mode="after")
    def _ascending(self) -> DomainSchedule:
        if self.total_steps is None and any(stage.start_fraction is not None for stage in self.stages):
            raise ValueError("expected total_steps, since a stage starts at a fraction of them")
        starts = self.starts
        if starts[0] != 0 or any(starts[i] >= starts[i + 1] for i in range(len(starts) - 1)):
            raise ValueError(f"expected stages that start at 0 and then later and later, got steps {starts}")
        return self

    @property
    def starts(self) -> list[int]:
        """The first step of each stage."""
        return [stage.start(self.total_steps) for stage in self.stages]

    def start(self, sizes: Int64s) -> State:
        for place, stage in enumerate(self.stages):
            if len(stage.mix) != len(sizes):
                raise ValueError(
                    f"mix.stages.{place}.mix: expected one number for each of the {len(sizes)} groups "
                    f"that column {self.group!r} has, got {len(stage.mix)}"
                )
        return {}

    def masses(self, state: State, sizes: Int64s, step: int) -> Float64s:
        starts = self.starts
        at = max(place for place, start in enumerate(starts) if start <= max(step, 0))
        mix = self._mix(at, len(sizes))
        if self.interpolate == "linear" and at + 1 < len(starts):
            part = (step - starts[at]) / (starts[at + 1] - starts[at])
            mix = (1.0 - part) * mix + part * self._mix(at + 1, len(sizes))
        return drawable(mix, sizes)

    def _mix(self, stage: int, groups: int) -> Float64s:
        """The shares of a stage; a group that came after the schedule was written has none."""
        mix = np.zeros(groups)
        listed = self.stages[stage].mix[:groups]
        mix[: len(listed)] = listed
        return normalised(mix)
