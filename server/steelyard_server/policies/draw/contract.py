"""What a draw method is: a validated configuration (`Draw`) and the cache that draws by it (`Drawer`)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from steelyard.source import Source
from steelyard_server.policies.columns import SERVED, Derived

Ids = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """One global batch: `ids` int64[B]; `probability` float64[B], or None where all had `uniform_probability`, which is
    1 / (number of drawable examples). `draw_state` is what the drawer holds once the batch counts as drawn, as JSON
    values. `weight` float32[B] is what a method that corrects for its own choice gives each; None where that is 1."""

    ids: Ids
    probability: npt.NDArray[np.float64] | None
    uniform_probability: float
    draw_state: Mapping[str, Any] = field(default_factory=dict)
    weight: Float32s | None = None


@dataclass(frozen=True, slots=True)
class LawSummary:
    """The next draw over the drawable examples, as far as it is known without looking at all of them.

    `effective_sample_ratio` as of the drawer; `largest_share` the greatest probability that an example has;
    `never_reported_share` that of those without a score among all that are not retired, None where the draw keeps no
    score. NaN: not known.
    """

    effective_sample_ratio: float
    largest_share: float
    never_reported_share: float | None


def _untold(name: str, ids: Ids) -> None:
    """Where nobody needs to know of a change before it happens."""


@dataclass(slots=True, eq=False)
class Examples:
    """The per-example state that a draw may read.

    `columns` holds float32[size] arrays, NaN where nothing is known, and exactly those that the policy asks for:
    they grow in place, so nobody keeps a part of one. `retired` is sorted and unique. `before_put` is told what is
    about to change.
    """

    size: int
    retired: Ids
    columns: dict[str, Float32s]
    before_put: Callable[[str, Ids], None] = _untold

    def put(self, name: str, ids: Ids, values: Float32s) -> None:
        """Gives `ids` (unique) new values in a column that is the method's own; the only way to change one."""
        self.before_put(name, ids)
        self.columns[name][ids] = values


class Drawer(ABC):
    """Draws batches from `Examples` and follows their changes.

    Not thread-safe. What it holds beyond the examples is either rebuilt from them or part of `get_state`, so that a
    drawer built from the same examples and state draws the same batches.
    """

    def prepare(self, step: int) -> None:  # noqa: B027 -- most methods need none
        """Brings up to date what the draw of `step` reads, an epoch's choice for example: own columns and own state.

        Called before each draw, and again when the journaled draw is replayed; a second call for a step changes
        nothing. What it does may depend on nothing but the examples, `get_state` and the step.
        """

    @abstractmethod
    def draw(self, step: int, count: int | None = None) -> Drawn:
        """The batch of `step`: `count` ids, batch_size where it is None. Changes nothing: it counts as drawn once
        `set_draw_state` is told of it.

        ValueError where nothing, or too little, may be drawn. O(B · levels).
        """

    def copies(self, ids: Ids, count: int) -> npt.NDArray[np.float64] | None:
        """The expected copies of each of `ids` among `count` that are drawn next, float64[m]; None where that is
        count · probability whatever the count."""
        return None

    def folded(self, step: int, ids: Ids, signals: Mapping[str, Float32s]) -> None:  # noqa: B027
        """A report of `ids` was folded, after the columns were: those of its signals that the method `listens` to,
        NaN where a value is not finite. An id that was drawn twice stands there twice."""

    @abstractmethod
    def changed(self, ids: Ids) -> None:
        """The columns of `ids` (unique) have new values. O(m · levels), and rarely O(size)."""

    @abstractmethod
    def grew(self) -> None:
        """The examples have a new, larger size."""

    @abstractmethod
    def retired(self, ids: Ids) -> None:
        """`ids` (unique, not retired before) must not be drawn again."""

    @abstractmethod
    def get_state(self) -> Mapping[str, Any]:
        """What cannot be rebuilt from the examples, as JSON values."""

    @abstractmethod
    def set_draw_state(self, state: Mapping[str, Any]) -> None:
        """Takes over the `draw_state` of a journaled batch: it is drawn."""

    def effective_sample_ratio(self) -> float:
        """(sum p)^2 / (N sum p^2) of the next draw over the drawable examples. O(size)."""
        return 1.0

    def summary(self, most: int) -> LawSummary:
        """The law of the next draw, for eyes: O(most), where a larger dataset is looked at in evenly spaced places.
        Changes nothing."""
        return LawSummary(1.0, 1.0 / self.drawable if self.drawable else math.nan, None)

    @property
    @abstractmethod
    def drawable(self) -> int:
        """How many examples may be drawn."""

    @property
    def most(self) -> int | None:
        """The most ids that one draw can have; None where it may have as many as it is asked for."""
        return None

    @property
    def never_reported(self) -> int | None:
        """How many of them have no score yet; None where the draw keeps no score."""
        return None

    @abstractmethod
    def check(self) -> None:
        """Raises AssertionError where an invariant is broken. O(size)."""


class Draw(BaseModel, ABC):
    """The configuration of a draw method. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: ClassVar[Source]
    """The paper, and the place in it or in its authors' code."""
    never_reported: ClassVar[str]
    """What becomes of examples that were never reported, in one sentence."""
    example: ClassVar[Mapping[str, Any]] = {}
    """Values for the fields that have no default, with which the contract is tried."""

    method: str

    @property
    @abstractmethod
    def derived(self) -> tuple[Derived, ...]:
        """The columns folded from reports that the method reads."""

    @property
    @abstractmethod
    def static(self) -> tuple[str, ...]:
        """The uploaded columns that the method reads."""

    @property
    def own(self) -> tuple[str, ...]:
        """The columns that the method keeps for itself: saved with the run, NaN at first."""
        return ()

    @property
    def listens(self) -> tuple[str, ...]:
        """The signals whose reports the drawer is told of as they are folded."""
        return ()

    @property
    def gives_weights(self) -> bool:
        """Whether its batches have a weight for each, that makes good for its choice and must reach the objective."""
        return False

    @property
    def reads_reports(self) -> bool:
        return bool(self.listens) or any(column.signal != SERVED for column in self.derived)

    @abstractmethod
    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> Drawer:
        """A drawer over `examples`, new or as `state` left it."""

    def objection(self, column: str, values: Float32s) -> str | None:
        """Why finite `values` of `column` cannot be used, naming the first position; None where they can."""
        return None

    def too_small(self, drawable: int, batch_size: int) -> str | None:
        """Why a batch cannot be drawn from so few examples; None where it can."""
        return None if drawable else "no example may be drawn: all are retired"

    def canonical(self) -> dict[str, Any]:
        """All fields with their values, as JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Self:
        return cls.model_validate(dict(config))
