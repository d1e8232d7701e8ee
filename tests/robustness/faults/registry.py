"""The faults by name. A fault is a function that plays rounds for as long as it is asked to.

    @fault("server killed", how="kill -9 at a random moment", bar="0 acknowledged lost")
    def rounds(bench: Bench) -> Iterator[Round]:
        with Scene(bench) as scene:
            while True:
                ...
                yield Round(rate, {"restarts": 1, "served again, s": 1.7})

One yield is one round that held. What did not hold is raised as Broken.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.robustness.faults.outcome import Figures


class Broken(AssertionError):  # noqa: N818 -- a promise
    """A promise that did not hold under a fault. The first line of the message says which."""


class CannotBeTried(Exception):  # noqa: N818 -- reads as it is meant
    """This machine lacks what the fault is injected with; the message says what."""


@dataclass(frozen=True, slots=True)
class Round:
    """One that held. `load`: batches a second before the fault; None where there is none."""

    load: float | None
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a fault is played. `short` is one small round, for a test suite: 20,000 examples, hardly a least load."""

    folder: Path
    moments: random.Random
    short: bool = False
    examples: int = 1_000_000

    @property
    def size(self) -> int:
        """Examples of the dataset."""
        return 20_000 if self.short else self.examples

    @property
    def least_load(self) -> float:
        """Batches of 1024 a second that are tried for before the fault."""
        return 20.0 if self.short else 200.0


Play = Callable[[Bench], Iterator[Round]]


@dataclass(frozen=True, slots=True)
class Fault:
    """`how` it is injected and the `bar`, in words of the table. `rounds` is what `make faults` plays by default.
    `suite` says whether the test suite plays a short round of it."""

    name: str
    how: str
    bar: str
    rounds: int
    suite: bool
    play: Play


_FAULTS: dict[str, Fault] = {}


def fault(name: str, *, how: str, bar: str, rounds: int = 10, suite: bool = True) -> Callable[[Play], Play]:
    def add(play: Play) -> Play:
        assert name not in _FAULTS, f"there is a fault named {name!r} already"
        _FAULTS[name] = Fault(name, how, bar, rounds, suite, play)
        return play

    return add


def faults() -> Mapping[str, Fault]:
    """All of them, in the order of the table."""
    from tests.robustness.faults import every  # noqa: F401 -- they register themselves

    return _FAULTS
