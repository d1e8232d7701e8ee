"""What a principal may do to which runs and datasets. Pure.

    rights = Rights.of([Grant(verbs=("read",), runs=("gpt-*",))])
    rights.holds("read", "run", "gpt-a")        # True

A decision follows from the name alone, whether there is something of that name or not: so it cannot tell.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Verb = Literal["draw", "report", "read", "admin"]
Kind = Literal["run", "dataset"]
VERBS: tuple[Verb, ...] = ("draw", "report", "read", "admin")

PATTERN = r"[A-Za-z0-9._*?-]{1,128}"
"""What a name is made of; * stands for any number of characters, ? for one."""
_LONGEST_NAME = 128


class GrantLike(Protocol):
    @property
    def verbs(self) -> Sequence[Verb]: ...
    @property
    def runs(self) -> Sequence[str]: ...
    @property
    def datasets(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Names:
    """The names that some patterns match; "*" alone matches all, also what could be no name."""

    all: bool
    pattern: re.Pattern[str] | None

    @classmethod
    def of(cls, patterns: Iterable[str]) -> Names:
        given = sorted(set(patterns))
        if "*" in given:
            return cls(True, None)
        return cls(False, re.compile("|".join(map(fnmatch.translate, given))) if given else None)

    def __contains__(self, name: str) -> bool:
        # What is longer is no name, and matching it could be made to take long.
        return self.all or (
            self.pattern is not None
            and len(name) <= _LONGEST_NAME
            and self.pattern.fullmatch(name) is not None
        )


@dataclass(frozen=True, slots=True)
class Rights:
    """All grants of a principal together. No verb implies another."""

    runs: dict[Verb, Names]
    datasets: dict[Verb, Names]
    everywhere: frozenset[Verb]
    """The verbs that one grant gives on all runs and all datasets."""

    @classmethod
    def of(cls, grants: Iterable[GrantLike]) -> Rights:
        given = list(grants)
        return cls(
            {verb: Names.of(p for one in given if verb in one.verbs for p in one.runs) for verb in VERBS},
            {verb: Names.of(p for one in given if verb in one.verbs for p in one.datasets) for verb in VERBS},
            frozenset(
                verb
                for verb in VERBS
                if any(verb in one.verbs and "*" in one.runs and "*" in one.datasets for one in given)
            ),
        )

    def holds(self, verb: Verb, kind: Kind, name: str) -> bool:
        return name in (self.runs if kind == "run" else self.datasets)[verb]

    def knows_of(self, kind: Kind, name: str) -> bool:
        """Whether any verb is held on it; where none is, it is answered as if it were not there."""
        return any(self.holds(verb, kind, name) for verb in VERBS)


_ALL = dict.fromkeys(VERBS, Names(True, None))
EVERYTHING = Rights(_ALL, _ALL, frozenset(VERBS))
