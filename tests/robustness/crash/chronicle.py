"""What was asked of the runs in a round, as the undisturbed runs must be asked too. Knows nothing of kills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Launch:
    """An attempt: from `start` on, its losses count. `changes` of the dataset's are in force from its start on."""

    attempt: int
    start: int
    changes: int


@dataclass(frozen=True, slots=True)
class Forked:
    """A run `name` was made of this one's state at step `at`, when `changes` of the dataset's were in force."""

    name: str
    at: int
    changes: int


@dataclass(frozen=True, slots=True)
class PolicyOf:
    """From step `at` on the run has this policy, until it goes back to an earlier step."""

    at: int
    policy: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Grown:
    size: int


@dataclass(frozen=True, slots=True)
class Retired:
    ids: tuple[int, ...]


@dataclass(slots=True)
class Chronicle:
    """The story of one run.

    `unknown` are steps of an attempt that cannot be foretold: those from there on were drawn while the dataset changed,
    and then undone.
    """

    name: str
    fields: Mapping[str, Any]
    parent: str | None = None
    tale: list[Launch | Forked | PolicyOf] = field(default_factory=list)
    unknown: dict[int, int] = field(default_factory=dict)
    bookmarks: dict[str, int] = field(default_factory=dict)
    """As they must be at the end."""
    checkpoint: int = 0
    """The step that the next attempt starts from."""

    @property
    def first_step(self) -> int:
        return min((one.start for one in self.tale if isinstance(one, Launch)), default=self.checkpoint)

    def went_back(self, step: int) -> None:
        """The run was taken back to `step`: what names later ones is gone."""
        self.checkpoint = step
        self.bookmarks = {name: at for name, at in self.bookmarks.items() if at <= step}


@dataclass(slots=True)
class Story:
    """All runs of a round and the changes of their dataset, in order."""

    size: int
    runs: dict[str, Chronicle] = field(default_factory=dict)
    changes: list[Grown | Retired] = field(default_factory=list)

    @property
    def size_now(self) -> int:
        sizes: Sequence[int] = [one.size for one in self.changes if isinstance(one, Grown)]
        return sizes[-1] if sizes else self.size
