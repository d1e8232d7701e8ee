"""What can happen to a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Signals = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Draw:
    step: int


@dataclass(frozen=True)
class Report:
    step: int
    offset: int
    signals: Signals


@dataclass(frozen=True)
class Observe:
    step: int | None
    ids: Sequence[int]
    signals: Signals


@dataclass(frozen=True)
class Close:
    step: int


@dataclass(frozen=True)
class Attempt:
    token: str
    world_size: int
    start_step: int


@dataclass(frozen=True)
class Grow:
    size: int


@dataclass(frozen=True)
class Retire:
    ids: frozenset[int]


@dataclass(frozen=True)
class SetColumn:
    name: str
    values: Mapping[int, float]


@dataclass(frozen=True)
class ChangePolicy:
    draw: Mapping[str, Any]
    weigh: Mapping[str, Any]
    mix: Mapping[str, Any] | None = None
    """None: it stays what it is."""


@dataclass(frozen=True)
class Bookmark:
    name: str
    step: int | None


@dataclass(frozen=True)
class Fork:
    """The run is another one from here on, which begins at this step."""

    step: int


Operation = (
    Draw | Report | Observe | Close | Attempt | Grow | Retire | SetColumn | ChangePolicy | Bookmark | Fork
)


def survives(operation: Operation, step: int) -> bool:
    """Whether going back to `step` keeps an operation that came after the draw of it."""
    match operation:
        case Report() | Close():
            return operation.step < step
        case Observe():
            return operation.step is not None and operation.step < step
        case Bookmark():
            return operation.step is None or operation.step <= step
        case SetColumn() | Grow() | Retire() | Attempt():
            return True
        case Draw() | ChangePolicy() | Fork():
            return False
