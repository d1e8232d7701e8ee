"""What a mix method is: a pure rule that gives each group of examples its mass.

A group is an integer 0..K-1 in a static column. A batch first takes its groups by the masses, then each group's share
by an ordinary draw over that group's rows. A rule remembers what it needs in a `State` of plain numbers, which is part
of the run's state: saved, rewound and forked with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from steelyard.source import Source

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_Numbers = TypeVar("_Numbers", bound=tuple[float, ...])

State = Mapping[str, list[float]]
"""What a rule remembers, by name: finite numbers, so that JSON holds them. A list has one number for each group, or a
length of its own; a rule that keeps anything else overrides `grown`."""

PerGroup = tuple[Annotated[float, Field(ge=-1e30, le=1e30)], ...]
"""A parameter with one number for each group, in the order of their ids."""
MassPerGroup = tuple[Annotated[float, Field(ge=0, le=1e30)], ...]
"""The same where only 0 and more make sense."""


def not_all_zero(numbers: _Numbers) -> _Numbers:
    """The numbers, as a check of a field. ValueError where none is above 0."""
    if not any(numbers):
        raise ValueError("expected a number above 0 among them")
    return numbers


SharePerGroup = Annotated[MassPerGroup, AfterValidator(not_all_zero)]
"""The same where they are a law: one of them must be above 0."""

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class GroupReport:
    """What was folded at one step, or observed, row by row."""

    step: int
    """The last step drawn, where it was observed without one."""
    groups: Int64s
    """int64[m]: the group of each row; a negative one is in none and counts nowhere."""
    values: Mapping[str, Float64s]
    """float64[m] by name: the signals and columns that the rule asked for; NaN where one is not known."""
    sizes: Int64s
    """int64[K]: how many examples of each group may be drawn."""
    since: int | None = None
    """The first step under this mix, where that is known: what rounds are counted from."""

    def means(self, name: str) -> tuple[Float64s, Float64s]:
        """The mean of `name` in each group, float64[K], NaN where it was not reported; and how many rows made it,
        float64[K]. Rows whose value is NaN are skipped. Signals are float32 on their way here, so that a sum of them
        stays finite; larger values are clipped to that range. O(m + K)."""
        total, count = self.sums(name)
        return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0), count

    def sums(self, name: str) -> tuple[Float64s, Float64s]:
        """The sum of `name` in each group and the number of rows that it is made of, float64[K] both. O(m + K)."""
        values = self.values[name]
        known = (self.groups >= 0) & ~np.isnan(values)
        groups, K = self.groups[known], len(self.sizes)  # noqa: N806 -- the number of groups, as everywhere
        clipped = np.clip(values[known], -_LARGEST, _LARGEST)
        # Adds in the order of rows, so that the sum is the same on every machine.
        total = np.bincount(groups, clipped, minlength=K)
        return total.astype(np.float64), np.bincount(groups, minlength=K).astype(np.float64)


class Mix(BaseModel, ABC):
    """The configuration of a mix method, and its rule. Unknown fields are refused.

    All methods are pure: what they return is a function of their arguments and of the fields. `masses` takes
    arithmetic that is the same on every machine (core.exact), because draws are made from it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: ClassVar[Source]
    never_reported: ClassVar[str]
    """What examples that were never reported get, in one sentence."""
    example: ClassVar[Mapping[str, Any]] = {}
    """Values for the fields that have no default, with which the contract is tried: for three groups."""
    per_group: ClassVar[Mapping[str, float]] = {}
    """The fields with one number a group, and what a group counts as that came after the list was written."""

    method: str
    group: str = Field(default="group", min_length=1, max_length=128)
    """The static column with the group of each example, an integer from 0 on; NaN: in no group, never drawn."""

    @property
    def signals(self) -> tuple[str, ...]:
        """The reported signals that `update` reads; none: the rule needs no reports."""
        return ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The static columns besides the group whose values at the reported ids `update` gets, or `keep` reads."""
        return ()

    def start(self, sizes: Int64s) -> State:
        """The state before anything is reported. int64[K] -> state.

        ValueError where a field has not one number for each of the K groups.
        """
        for name in self.per_group:
            listed = getattr(self, name)
            if listed is not None and len(listed) != len(sizes):
                raise ValueError(
                    f"mix.{name}: expected one number for each of the {len(sizes)} groups "
                    f"that column {self.group!r} has, got {len(listed)}"
                )
        return self.fresh(sizes)

    def fresh(self, sizes: Int64s) -> State:
        """What a rule that remembers starts with, int64[K] -> state. Never fails: it also serves groups that come
        later."""
        return {}

    def grown(self, state: State, sizes: Int64s) -> State:
        """The state once the groups have these `sizes`: lists get what a fresh start gives the groups that are new."""
        fresh = self.fresh(sizes)
        return {name: [*values, *fresh.get(name, [])[len(values) :]] for name, values in state.items()}

    def update(self, state: State, report: GroupReport) -> State:
        """The state after a report. Order of rows matters only as far as addition rounds."""
        return state

    def prepared(self, state: State, sizes: Int64s, step: int) -> State:
        """The state before the draw of `step`, asked for before each draw, in a replay too: what ends with a step,
        whether anything is reported or not, ends here. Idempotent for the same step."""
        return state

    @abstractmethod
    def masses(self, state: State, sizes: Int64s, step: int) -> Float64s:
        """The mass of each group in the batch of `step`: float64[K], finite, none negative, and one above 0 where
        `sizes` is. They need not sum to 1, and those of empty groups do not matter. `state` is what `prepared` gave for
        `step`."""

    def keep(self, groups: Int64s, columns: Mapping[str, npt.NDArray[Any]], step: int) -> Bools | None:
        """Which examples may be drawn at all, bool[N]; None: all. `groups` is int64[N], negative where in none."""
        return None

    def numbers(self, name: str, groups: int) -> Float64s:
        """The field `name` as float64[groups]: what `per_group` says stands for groups beyond its list."""
        listed = getattr(self, name)
        numbers = np.full(groups, self.per_group[name])
        numbers[: len(listed)] = listed[:groups]
        return numbers

    def canonical(self) -> dict[str, Any]:
        """All fields with their values, as JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Self:
        return cls.model_validate(dict(config))


def expect_square(name: str, rows: Sequence[Sequence[float]] | None, groups: int) -> None:
    """ValueError where the field `name` is given and is not `groups` rows of `groups` numbers."""
    lengths = {len(row) for row in rows or ()}
    if rows is not None and (len(rows) != groups or lengths != {groups}):
        raise ValueError(
            f"mix.{name}: expected {groups} rows of {groups} numbers, one a group, "
            f"got {len(rows)} rows of {', '.join(map(str, sorted(lengths))) or 0}"
        )
