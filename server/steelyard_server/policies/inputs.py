"""What the methods of a policy read that somebody else must bring: signals of reports, columns of the dataset."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

_ALIKE = 0.7
"""From here on (difflib's ratio) a name that nothing has is taken for another one, misspelt."""


@dataclass(frozen=True, slots=True)
class Input:
    """One thing that a method reads: `family` is draw, mix or weigh. `through`: the derived column that it reads a
    signal by, if it does."""

    family: str
    method: str
    kind: Literal["signal", "column"]
    name: str
    through: str = ""


def missing(inputs: Iterable[Input], heard: Collection[str], empty: Collection[str]) -> tuple[Input, ...]:
    """The inputs that have not come: signals that are not among those `heard`, columns that are `empty`."""
    return tuple(
        one for one in inputs if (one.name not in heard if one.kind == "signal" else one.name in empty)
    )


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` seems to stand for; None where it is one, or none is near."""
    names = sorted(set(known))
    if name in names:
        return None
    found = difflib.get_close_matches(name, names, n=1, cutoff=_ALIKE)
    return found[0] if found else None


def misspelt(name: str, known: Iterable[str]) -> bool:
    """Whether a name seems to be a known one, misspelt: near to it, and none that goes on from it, as those of further
    signals do."""
    near = nearest(name, known)
    return near is not None and near not in name


def explain(one: Input, known: Iterable[str]) -> str:
    """What is missing, in one sentence; `known`: the signals that have come."""
    near = nearest(one.name, known) if one.kind == "signal" else None
    hint = f"; did you mean {near!r}?" if near is not None else ""
    through = f", through {one.through!r}," if one.through else ""
    if one.kind == "column":
        return f"{one.family} {one.method!r} reads the column {one.name!r}, which has no value yet"
    return (
        f"{one.family} {one.method!r} reads the signal {one.name!r}{through or ','} which no report or observation has "
        f"had a value of yet{hint}"
    )
