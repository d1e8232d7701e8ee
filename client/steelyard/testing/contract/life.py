"""A run without a server, by the server's own fold: what draw and mix methods are tried in."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard.testing.contract.subject import Subject
from steelyard_server.core import events as e
from steelyard_server.policies.columns import SERVED
from steelyard_server.runs import snapshot
from steelyard_server.runs.spec import parse_spec
from steelyard_server.runs.state import RunState

SIZE = 24
BATCH_SIZE = 4
SEED = 11


class Life:
    """Events in, batches out. `events` are all that were applied, so that they can be applied again."""

    def __init__(self, subject: Subject, *, size: int = SIZE, **spec: Any) -> None:
        self._subject = subject
        policy: dict[str, Any] = {"draw": {"method": "shuffle"}, "weigh": {"method": "uniform"}}
        policy[subject.family] = dict(subject.config)
        if subject.family == "draw" and subject.method.parse(subject.config).gives_weights:
            policy["weigh"] = {"method": "infobatch_rescale"}
        values = {"name": "r", "dataset": "d", "batch_size": BATCH_SIZE, "seed": SEED, "staleness": 0}
        created = e.RunCreated(
            parse_spec({**values, **policy, **spec}).model_dump(mode="json"), dataset_size=size
        )
        self.run = RunState(created)
        self.created = created
        self.events: list[e.Event] = []

    @property
    def signals(self) -> tuple[str, ...]:
        """What the policy wants reported, the loss among it."""
        policy = self.run.policy
        read = {column.signal for column in policy.derived if column.signal != SERVED}
        return tuple(sorted({"loss", *read, *policy.listens}))

    @property
    def static(self) -> tuple[str, ...]:
        return self.run.policy.static

    def apply(self, event: e.Event) -> None:
        self.run.apply(event)
        self.events.append(event)
        if not isinstance(event, e.BatchDrawn):
            # A drawn batch is mostly reported next: once for both is enough.
            self.run.check()

    def set_columns(self, start: int = 0, values: dict[str, Any] | None = None) -> None:
        """Gives the ids from `start` on a value in each static column."""
        size = self.run.examples.size
        ids = np.arange(start, size)
        for name in self.static:
            column = self._subject.column(name, size) if values is None else values[name]
            self.apply(e.ColumnSet(name, ids, np.asarray(column, np.float32)[start:]))

    def draw(self) -> e.BatchDrawn:
        """The next batch, drawn and applied; what holds for every batch is checked."""
        drawn = self.run.draw()
        size, retired = self.run.examples.size, self.run.examples.retired
        assert drawn.ids.dtype == np.int64, f"expected ids of int64, got {drawn.ids.dtype}"
        assert len(drawn.ids) == BATCH_SIZE, f"expected {BATCH_SIZE} ids, got {len(drawn.ids)}"
        assert ((drawn.ids >= 0) & (drawn.ids < size)).all(), f"ids {drawn.ids.tolist()} of {size} examples"
        gone = np.intersect1d(drawn.ids, retired)
        assert not len(gone), f"retired ids {gone.tolist()} were drawn"
        probability = drawn.probability
        if probability is not None:
            assert np.isfinite(probability).all(), f"probabilities {probability.tolist()}"
            assert ((probability > 0) & (probability <= 1)).all(), f"probabilities {probability.tolist()}"
        if drawn.weight is not None:
            assert np.isfinite(drawn.weight).all(), f"weights {drawn.weight.tolist()}"
            assert (drawn.weight >= 0).all(), f"weights {drawn.weight.tolist()}"
        self.apply(drawn)
        return drawn

    def report(self, drawn: e.BatchDrawn, **values: Any) -> None:
        """The signals of a batch, made up where none are given."""
        made = {name: self._subject.signal(name, drawn.ids, drawn.step) for name in self.signals}
        made.update({name: np.asarray(given, np.float32) for name, given in values.items()})
        self.apply(e.LossesReported(drawn.step, 0, made))

    def step(self) -> e.BatchDrawn:
        drawn = self.draw()
        self.report(drawn)
        return drawn

    def steps(self, count: int) -> list[e.BatchDrawn]:
        return [self.step() for _ in range(count)]

    def grow(self, added: int) -> None:
        before = self.run.examples.size
        self.apply(e.DatasetGrown(before + added))
        self.set_columns(before)

    def observe(self, ids: npt.NDArray[np.int64], **values: Any) -> None:
        signals = {name: self._subject.signal(name, ids) for name in self.signals}
        signals.update({name: np.asarray(given, np.float32) for name, given in values.items()})
        self.apply(e.SignalsObserved(None, ids, signals))

    def restored(self) -> Life:
        """The same life from what a checkpoint holds."""
        taken = snapshot.take(self.run)
        blobs = {name: array.copy() for name, array in taken.blobs.items()}
        columns = {name: array.copy() for name, array in taken.columns.items()}
        again = object.__new__(Life)
        again._subject, again.created, again.events = self._subject, self.created, list(self.events)
        again.run = snapshot.restore(json.loads(json.dumps(taken.meta)), blobs, columns)
        return again

    def replayed(self) -> Life:
        """The same life from its journal."""
        again = object.__new__(Life)
        again._subject, again.created, again.events = self._subject, self.created, []
        again.run = RunState(self.created)
        for event in self.events:
            again.apply(event)
        return again


def same_batch(one: e.BatchDrawn, other: e.BatchDrawn, why: str) -> None:
    """Bit for bit."""
    np.testing.assert_array_equal(one.ids, other.ids, f"ids of step {one.step}, {why}")
    for name in ("probability", "weight"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None), f"{name} of step {one.step}, {why}: {mine} and {theirs}"
        if mine is not None:
            np.testing.assert_array_equal(mine, theirs, f"{name} of step {one.step}, {why}")
    assert json.dumps(one.draw_state) == json.dumps(other.draw_state), f"state of step {one.step}, {why}"
