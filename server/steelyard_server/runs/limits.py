"""How much a server takes on: datasets, runs, and the examples of all runs together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from steelyard_server.runs.errors import Exhausted


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings of these names. What is there already when a limit is lowered stays, and nothing is added."""

    max_runs: int = 1000
    max_datasets: int = 1000
    max_examples: int = 10**10
    max_draws_per_call: int = 1 << 25


@dataclass(frozen=True, slots=True)
class Use:
    """What there is: `sizes` of datasets by name, and the dataset of each run."""

    sizes: Mapping[str, int]
    runs: Mapping[str, str]

    @property
    def examples(self) -> int:
        """A run counts its dataset's size: that many leaves, columns and histories it may keep."""
        return sum(self.sizes.get(dataset, 0) for dataset in self.runs.values())


@dataclass(slots=True)
class _Planned:
    sizes: dict[str, int] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)


class Admission:
    """Thread-safe. Admits one change at a time against `present` and all that is admitted and not made yet, so that of
    two changes for which there is room for one, one is made. Changes of one name must not overlap."""

    def __init__(self, limits: Limits, present: Callable[[], Use]) -> None:
        """`present` copies what there is now; it must not wait."""
        self._limits = limits
        self._present = present
        self._lock = threading.Lock()
        self._planned = _Planned()

    @contextmanager
    def dataset(self, name: str, size: int) -> Iterator[None]:
        """For a dataset that is made, or grows, to `size`. Exhausted where a limit stands against it."""
        with self._lock:
            now = self._use()
            then = Use({**now.sizes, name: size}, now.runs)
            what = f"dataset {name!r} of {size} examples"
            if name not in now.sizes:
                self._check("max_datasets", "datasets", what, len(now.sizes), len(then.sizes))
            self._check("max_examples", "examples of runs", what, now.examples, then.examples)
            self._planned.sizes[name] = size
        try:
            yield
        finally:
            with self._lock:
                del self._planned.sizes[name]

    @contextmanager
    def run(self, name: str, dataset: str) -> Iterator[None]:
        """For a run that is made, by create or fork. Exhausted where a limit stands against it."""
        with self._lock:
            now = self._use()
            then = Use(now.sizes, {**now.runs, name: dataset})
            what = f"run {name!r} on the {now.sizes.get(dataset, 0)} examples of dataset {dataset!r}"
            self._check("max_runs", "runs", what, len(now.runs), len(then.runs))
            self._check("max_examples", "examples of runs", what, now.examples, then.examples)
            self._planned.runs[name] = dataset
        with self._leaving(name):
            yield

    @contextmanager
    def leaving(self, name: str, dataset: str) -> Iterator[None]:
        """For a run that is deleted: it counts until its records are gone."""
        with self._lock:
            self._planned.runs[name] = dataset
        with self._leaving(name):
            yield

    @contextmanager
    def _leaving(self, name: str) -> Iterator[None]:
        try:
            yield
        finally:
            with self._lock:
                del self._planned.runs[name]

    def _use(self) -> Use:
        present, planned = self._present(), self._planned
        return Use({**present.sizes, **planned.sizes}, {**present.runs, **planned.runs})

    def _check(self, setting: str, kind: str, what: str, now: int, then: int) -> None:
        limit: int = getattr(self._limits, setting)
        if then > max(limit, now):
            raise Exhausted(
                f"no room for {what}: this server has {now} {kind}, {then - now} more would make {then}, and "
                f"{setting} is {limit}; delete what is not needed, or raise {setting} and start the server again"
            )
