"""What a run and its trainers say to each other, free of the wire's encoding."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from steelyard_server.core.events import BatchDrawn, Float32s
from steelyard_server.runs.spec import RunSpec


@dataclass(frozen=True, slots=True)
class Join:
    rank: int
    world_size: int
    replica: int
    attempt: str
    session: str
    start_step: int | None
    resume_step: int | None
    credit: int


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """`signals` are float32 arrays of one length, for positions offset.. of the batch of `step`."""

    step: int
    offset: int
    digest: int
    signals: Mapping[str, Float32s]
    want_weights: bool
    count: int = field(init=False)

    def __post_init__(self) -> None:
        count = max(map(len, self.signals.values()), default=0)
        object.__setattr__(self, "count", count)


@dataclass(frozen=True, slots=True)
class Credit:
    """Further batches that a trainer is ready to hold."""

    batches: int


class Weighing(enum.Enum):
    """Where the weights of a step come from."""

    DRAW = enum.auto()
    """With the batch."""
    LOSSES = enum.auto()
    """From the losses of the whole step, made by the server or by who has them all."""
    SERVER = enum.auto()
    """From the losses and what only the server has."""
    IN_ORDER = enum.auto()
    """As SERVER, and from the steps before: there are none before all of these are closed."""


@dataclass(frozen=True, slots=True)
class Joined:
    spec: RunSpec
    dataset_size: int
    start_step: int
    attempt: str
    reads_reports: bool
    weighing: Weighing


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """Positions offset..offset+count-1 of a drawn batch; `weight` float32[count], None where every weight is 1.

    `policy` and `weighing` are of the step, where its policy differs from that of the one before."""

    drawn: BatchDrawn
    offset: int
    count: int
    weight: Float32s | None
    dataset_size: int
    policy: Mapping[str, Any] | None
    weighing: Weighing | None = None


class Disposition(enum.Enum):
    APPLIED = enum.auto()
    DUPLICATE = enum.auto()
    LATE = enum.auto()


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    step: int
    offset: int
    count: int
    disposition: Disposition


@dataclass(frozen=True, slots=True)
class Refusal:
    step: int
    offset: int
    count: int
    error: Exception


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    step: int
    offset: int
    weights: Float32s


@dataclass(frozen=True, slots=True)
class MissingInput:
    """Something that the policy reads and that has not come; `column`: of the dataset, else a signal."""

    name: str
    text: str
    column: bool


Outgoing = Joined | Slice | Acknowledgement | Refusal | Weights | MissingInput


class Outbox(Protocol):
    """Where a run puts what a trainer shall get. Called from any thread; must not block."""

    def send(self, message: Outgoing) -> None: ...

    def end(self, error: Exception | None) -> None:
        """Ends the stream, with OK where there is no error. Later calls are ignored."""
