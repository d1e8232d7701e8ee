"""What each draw and mix method costs the run that draws by it: a step of the fold, and the longest one, in which a
choice looks at all examples."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from steelyard.testing.contract.subject import Subject, subject_of
from steelyard_server.core import events as e
from steelyard_server.policies.columns import SERVED
from steelyard_server.policies.draw import METHODS as DRAWS
from steelyard_server.policies.mix import METHODS as MIXES
from steelyard_server.runs.spec import parse_spec
from steelyard_server.runs.state import RunState
from tests.benchmarks import own_kernels
from tests.benchmarks.measure import Options, Series, Table

_BASE = "draw shuffle"
_SOON: Mapping[str, Any] = {"after_epochs": 1, "refresh_steps": 40, "every": 40, "ignored": 40}
"""So that what is done now and then is among the steps that are measured, which are two epochs."""
_NOTES = (
    "a step: the draw, its event applied, and the report of a signal for each id applied; no disk, no wire",
    "two epochs of steps; the longest of them without the first, which builds what the method draws from",
    "mixes draw from three groups, each shuffled by itself",
)


def measure(options: Options) -> Iterator[Table]:
    told = own_kernels.take()
    size, batch = (2_000, 200) if options.quick else (1_000_000, 8192)
    subjects = [subject_of(DRAWS[name], "draw", {}) for name in sorted(DRAWS)]
    subjects += [subject_of(MIXES[name], "mix", {}) for name in sorted(MIXES)]
    subjects = [_as_measured(subject, size) for subject in subjects]
    found: dict[str, list[tuple[float, float, float]]] = {}
    for turn in range(options.repeats):
        for subject in subjects if turn % 2 == 0 else subjects[::-1]:
            name = f"{subject.family} {subject.name}"
            found.setdefault(name, []).append(_life(subject, size, batch))
    series = []
    for name in sorted(found, key=lambda name: (name != _BASE, name)):
        first, median, longest = zip(*found[name], strict=True)
        series.append(Series(f"{name}: a step", "µs", median, f"{_BASE}: a step"))
        series.append(Series(f"{name}: the longest", "ms", longest))
        series.append(Series(f"{name}: the first", "ms", first, shown=False))
    yield Table("methods: what a step costs the run", series, {"ids": size, "batch": batch}, [*_NOTES, told])


def _as_measured(subject: Subject, size: int) -> Subject:
    known, config = subject.method.model_fields, dict(subject.config)
    config |= {name: value for name, value in _SOON.items() if name in known and name not in config}
    if "k" in config:
        # An example of a few dozen rows chooses a few: a batch would go through them many times.
        config["k"] = size // 2
    return Subject(subject.registry, subject.method, config)


def _life(subject: Subject, size: int, batch: int) -> tuple[float, float, float]:
    """Milliseconds of the first step, microseconds of the median one, milliseconds of the longest but the first."""
    run = _run(subject, size, batch)
    taken = []
    for _ in range(2 * size // batch + 2):
        values: dict[str, Any] = {}
        began = time.perf_counter()
        drawn = run.draw()
        run.apply(drawn)
        paused = time.perf_counter()
        for name in _signals(run):
            values[name] = subject.signal(name, drawn.ids, drawn.step)
        resumed = time.perf_counter()
        run.apply(e.LossesReported(drawn.step, 0, values))
        taken.append(time.perf_counter() - resumed + paused - began)
    return taken[0] * 1e3, float(np.median(taken[1:])) * 1e6, max(taken[1:]) * 1e3


def _run(subject: Subject, size: int, batch: int) -> RunState:
    policy: dict[str, Any] = {"draw": {"method": "shuffle"}, "weigh": {"method": "uniform"}}
    policy[subject.family] = dict(subject.config)
    if subject.family == "draw" and subject.method.parse(subject.config).gives_weights:
        policy["weigh"] = {"method": "infobatch_rescale"}
    values = {"name": "r", "dataset": "d", "batch_size": batch, "seed": 1, "staleness": 0, "history_size": 0}
    run = RunState(e.RunCreated(parse_spec({**values, **policy}).model_dump(mode="json"), size))
    ids = np.arange(size)
    for name in run.policy.static:
        run.apply(e.ColumnSet(name, ids, subject.column(name, size)))
    signals = {name: subject.signal(name, ids) for name in _signals(run)}
    run.apply(e.SignalsObserved(None, ids, signals))
    return run


def _signals(run: RunState) -> list[str]:
    read = {column.signal for column in run.policy.derived if column.signal != SERVED}
    return sorted({"loss", *read, *run.policy.listens})
