"""What the trainers and the owner got, against the undisturbed runs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import steelyard
from steelyard.split import split
from tests.robustness.crash.calm import CalmRun, Served, history_of
from tests.robustness.crash.chronicle import Chronicle, Story
from tests.robustness.crash.processes import CrashFailure, Job


@dataclass(frozen=True, slots=True)
class Said:
    """One line of a trainer: a batch that it was served, or the weights that it was answered with."""

    attempt: int
    rank: int
    world: int
    kind: str
    run: str
    values: Any

    @property
    def step(self) -> int:
        return int(self.values["step"] if self.kind == "batch" else self.values[0])

    def __str__(self) -> str:
        return f"run {self.run!r}, attempt {self.attempt}, rank {self.rank} of {self.world}, step {self.step}"


@dataclass(slots=True)
class Heard:
    """All that the trainers of a round have said."""

    lines: list[Said] = field(default_factory=list)

    @classmethod
    def of(cls, jobs: Iterable[Job]) -> Heard:
        return cls([said for job in jobs for said in _lines(job)])

    def ends(self) -> dict[str, dict[int, int]]:
        """By run and attempt the first step that was not served."""
        found: dict[str, dict[int, int]] = defaultdict(dict)
        for said in self.lines:
            known = found[said.run].get(said.attempt, 0)
            found[said.run][said.attempt] = max(known, said.step + 1)
        return found


def _lines(job: Job) -> Iterator[Said]:
    for rank in job.ranks:
        path = job.folder / f"rank.{rank}"
        text = path.read_bytes() if path.exists() else b""
        for line in text[: text.rfind(b"\n") + 1].splitlines():
            kind, run, *values = json.loads(line)
            if kind in ("batch", "weights"):
                value = values[0] if kind == "batch" else values
                yield Said(job.attempt, rank, job.worlds[run], kind, run, value)


def check_said(heard: Heard, story: Story, calm: Mapping[str, CalmRun]) -> int:
    """Every slice that any trainer got, that of attempts that were superseded too. Returns how many."""
    checked = 0
    for said in heard.lines:
        chronicle = story.runs[said.run]
        if said.step >= chronicle.unknown.get(said.attempt, said.step + 1):
            continue
        expected = calm[said.run].served[said.attempt].get(said.step)
        if expected is None:
            raise CrashFailure(f"{said}: was served, and the undisturbed run has no such step then")
        if said.kind == "batch":
            _check_slice(said, expected, compare_version=_reads_reports(chronicle))
        else:
            offset, weights = said.values[1:]
            _same(said, "weights", weights, expected.answered[offset : offset + len(weights)])
        checked += 1
    return checked


def _check_slice(said: Said, expected: Served, *, compare_version: bool) -> None:
    offset, count = split(len(expected.ids), said.world, said.rank)
    here = slice(offset, offset + count)
    got = said.values
    _same(said, "offset", got["offset"], offset)
    _same(said, "batch_size", got["batch_size"], len(expected.ids))
    _same(said, "ids", got["ids"], expected.ids[here])
    _same(said, "digest", got["digest"], expected.digest)
    _same(said, "probability", got["probability"], expected.probability[here])
    _same(said, "weight", got["weight"], expected.weight[here])
    if compare_version:
        _same(said, "state_version", got["version"], expected.version)


def check_run(run: steelyard.Run, chronicle: Chronicle, calm: CalmRun, stop: int) -> int:
    """What the run's owner is told: where it stands, every retained batch, columns, history, counts. Returns how many
    batches were compared."""
    info, stats, end = run.info(), run.stats(), calm.end
    where = f"run {run.name!r}"
    _same(where, "closed_steps", info.closed_steps, stop)
    _same(where, "dataset_size", info.dataset_size, end.examples.size)
    _same(where, "bookmarks", sorted(info.bookmarks.items()), sorted(chronicle.bookmarks.items()))
    for name in ("served_ids", "reported_losses", "nonfinite_losses", "closed_by_timeout"):
        _same(where, name, getattr(stats, name), getattr(end.counters, name))
    drawer = end.peek_drawer()
    _same(where, "folded_steps", stats.folded_steps, end.folded_steps)
    _same(where, "drawable", stats.drawable, drawer.drawable)
    _same(where, "never_reported", stats.never_reported, drawer.never_reported)
    _same(where, "effective_sample_ratio", stats.effective_sample_ratio, drawer.effective_sample_ratio())
    for name, values in end.examples.columns.items():
        _same(where, f"column {name}", run.column(name), values)
    history = run.history(range(end.examples.size))
    for example, row in enumerate(history_of(end, end.examples.size, end.spec.history_size)):
        _same(where, f"history of {example}", history[example], row)
    last = calm.last
    for step in range(max(info.oldest_step, chronicle.first_step), info.next_step):
        _check_batch(f"{where}, step {step}", run.batch(step), last[step], reads=_reads_reports(chronicle))
    return info.next_step - info.oldest_step


def _check_batch(where: str, got: steelyard.Batch, expected: Served, *, reads: bool) -> None:
    _same(where, "ids", got.ids, expected.ids)
    _same(where, "digest", got.digest, expected.digest)
    _same(where, "probability", got.probability, expected.probability)
    if reads:
        # Under a rule that reads losses the weights of old steps are not kept; the trainers' answers were compared.
        _same(where, "weight", got.weight, expected.weight)
        _same(where, "state_version", got.state_version, expected.version)


def _reads_reports(chronicle: Chronicle) -> bool:
    method: str = chronicle.fields["draw"]["method"]
    return method != "shuffle"


def _same(where: object, what: str, got: Any, expected: Any) -> None:
    """Equal to the last bit; NaN equals NaN."""
    if isinstance(expected, np.ndarray):
        equal = np.array_equal(
            np.asarray(got, expected.dtype), expected, equal_nan=expected.dtype.kind == "f"
        )
    else:
        equal = repr(got) == repr(expected)
    if not equal:
        raise CrashFailure(f"{where}: expected {what} {expected!r}, got {got!r}")
