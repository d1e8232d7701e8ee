"""The fold against a dumb twin, event by event; and replay, restart and re-run must give the same state.

The twin (tests/twin) is plain Python and borrows nothing: lists instead of the tree, orders written out instead of
keyed permutations, one number at a time instead of arrays.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twin import operations as op
from twin import state as twin_state
from twin.columns import parts_of
from twin.state import State as Twin
from twin.state import same

from steelyard_server.core import events as e
from steelyard_server.policies.policy import parse_policy
from steelyard_server.runs import reports, snapshot, spec, state
from steelyard_server.runs.errors import Exists
from steelyard_server.runs.messages import Report
from steelyard_server.runs.state import RunState

WINDOW = 5
CHUNK = 4
NAN = float("nan")
LOSSES = [0.0, 0.125, 1.0, 3.5, 1e-30, 1e30, NAN, math.inf]
VALUES = [0.0, 0.5, 2.0, 1e30, 1e-3, NAN]
DRAWS: list[dict[str, Any]] = [
    {"method": "shuffle"},
    {"method": "scored", "sampling": "independent", "floor": 0.25},
    {"method": "scored", "sampling": "stratified", "score": "mean_loss", "unseen": "mean"},
    {
        "method": "scored",
        "sampling": "stratified",
        "score": "ema_loss",
        "transform": "softmax",
        "unseen": 2.0,
    },
    {"method": "scored", "sampling": "independent", "score": "count_loss", "transform": "identity"},
    {"method": "scored", "sampling": "distinct", "alpha": 0.5, "floor": 0.1},
    {"method": "scored", "sampling": "independent", "score": "quality", "transform": "identity"},
    {"method": "scored", "sampling": "distinct"},
]
MIXES: list[dict[str, Any]] = [
    {"method": "none"},
    {"method": "none"},
    {"method": "static"},
    {"method": "static", "shares": [3.0, 0.0, 0.5]},
    {"method": "group_balanced"},
]

RUN_MAX = {"method": "importance", "normalise": "run_max"}
"""It remembers, which is part of the fold."""


def f32(values: Sequence[float]) -> e.Float32s:
    return np.array(values, np.float32)


def specification(
    batch_size: int, staleness: int | str, seed: int, draw: dict[str, Any], mix: dict[str, Any] | None = None
) -> dict[str, Any]:
    policy = parse_policy(draw, RUN_MAX, mix).canonical()
    rest = {"name": "r", "dataset": "d", "batch_size": batch_size, "seed": seed, "staleness": staleness}
    return {**rest, "history_size": 8, "on_nonfinite": "skip", **policy}


# ---- comparing whole states ----


def stored(run: RunState) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A snapshot as a checkpoint would give it back."""
    taken = snapshot.take(run)
    return (
        json.loads(json.dumps(taken.meta)),
        {name: array.copy() for name, array in taken.blobs.items()},
        {name: array.copy() for name, array in taken.columns.items()},
    )


def fingerprint(run: RunState) -> str:
    """A hash of everything that a snapshot holds."""
    meta, blobs, columns = stored(run)
    digest = hashlib.blake2b(json.dumps(meta, sort_keys=True).encode(), digest_size=16)
    for name, array in sorted([*blobs.items(), *columns.items()]):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def history_of(run: RunState) -> list[tuple[int, int, float]]:
    return [
        (entry.step, int(example), float(loss))
        for entry in run.unsaved_history
        for example, loss in zip(entry.ids, entry.losses, strict=True)
    ]


def the_next_batches(run: RunState) -> list[tuple[list[int], list[float], int]]:
    """Those that can be drawn without further reports, drawn by a copy."""
    copy = snapshot.restore(*stored(run))
    batches: list[tuple[list[int], list[float], int]] = []
    while copy.awaited_step() is None and copy.obstacle() is None and len(batches) < 3:
        drawn = copy.draw()
        copy.apply(drawn)
        probability = drawn.probability
        batches.append(
            (drawn.ids.tolist(), [] if probability is None else probability.tolist(), drawn.digest)
        )
    return batches


class Checkpoint:
    """What is on disk: all columns, rewritten only where a chunk is dirty, and the history so far."""

    def __init__(self, at: int, run: RunState, before: Checkpoint | None) -> None:
        self.at = at
        self.meta, self.blobs, columns = stored(run)
        self.columns: dict[str, e.Float32s] = {}
        for name, column in columns.items():
            older = before.columns.get(name) if before else None
            merged = np.full(len(column), -1, np.float32)
            if older is not None:
                merged[: len(older)] = older
            for chunk in np.flatnonzero(run.dirty[name]):
                merged[chunk * CHUNK : (chunk + 1) * CHUNK] = column[chunk * CHUNK : (chunk + 1) * CHUNK]
            self.columns[name] = merged
            run.dirty[name][:] = False
        self.history: list[tuple[int, int, float]] = [*(before.history if before else []), *history_of(run)]
        run.unsaved_history = []

    def restore(self) -> RunState:
        return snapshot.restore(self.meta, self.blobs, self.columns)


class Fold(RuleBasedStateMachine):
    @initialize(
        size=st.integers(1, 13),
        batch_size=st.integers(1, 6),
        staleness=st.sampled_from([0, 1, 3, "any"]),
        seed=st.integers(0, 3),
        draw=st.sampled_from(DRAWS),
        mix=st.sampled_from(MIXES),
    )
    def begin(
        self,
        size: int,
        batch_size: int,
        staleness: int | str,
        seed: int,
        draw: dict[str, Any],
        mix: dict[str, Any],
    ) -> None:
        self.patches = [
            mock.patch.object(spec, "LEAST_REPORT_WINDOW", WINDOW),
            mock.patch.object(state, "COLUMN_CHUNK", CHUNK),
            mock.patch.object(twin_state, "LEAST_WINDOW", WINDOW),
        ]
        for patch in self.patches:
            patch.start()
        values = specification(batch_size, staleness, seed, draw, mix)
        self.events: list[e.Event] = [e.RunCreated(values, size)]
        self.run = RunState(self.events[0])  # type: ignore[arg-type]
        self.twin = Twin(values, size)
        self.checkpoints: list[Checkpoint] = []
        self.set_groups(0, size, [0, 1, 2, 2])

    def do(self, event: e.Event) -> None:
        self.run.apply(event)
        self.events.append(event)

    # ---- the stream ----

    @precondition(lambda self: self.run.awaited_step() is None and self.run.obstacle() is None)
    @rule()
    def draw(self) -> None:
        event = self.run.draw()
        again = self.run.draw()
        assert again.ids.tolist() == event.ids.tolist()
        assert again.draw_state == event.draw_state
        self.do(event)
        self.twin.apply(op.Draw(event.step))
        served = self.twin.steps[event.step]
        assert event.ids.tolist() == served.ids
        mine = event.probability
        assert (mine.tolist() if mine is not None else [event.uniform_probability] * len(served.ids)) == (
            served.probability
        )
        assert event.uniform_probability == 1 / self.twin.drawable
        assert (event.state_version, event.digest) == (served.version, served.digest)

    @precondition(lambda self: self.run.steps)
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(sorted(self.run.steps)))
        size = self.twin.batch_size
        offset = data.draw(st.integers(0, size - 1))
        count = data.draw(st.sampled_from([size - offset, 1]))
        losses = data.draw(st.lists(st.sampled_from(LOSSES), min_size=count, max_size=count).map(rounded))
        served = self.twin.steps[step]
        if data.draw(st.booleans()):
            losses = [
                served.signals["loss"][offset + k] if served.reported[offset + k] else loss
                for k, loss in enumerate(losses)
            ]
        report = Report(step, offset, served.digest, {"loss": f32(losses)}, False)
        verdict, before = self.twin.judge(step, offset, {"loss": losses}), fingerprint(self.run)
        try:
            disposition = reports.judge(self.run, report, lambda step: None)
        except Exists:
            assert verdict == "ALREADY_EXISTS"
            return
        assert disposition.name == verdict
        assert fingerprint(self.run) == before
        if verdict == "APPLIED":
            self.do(e.LossesReported(step, offset, report.signals))
            self.twin.apply(op.Report(step, offset, {"loss": losses}))

    @precondition(lambda self: self.run.steps)
    @rule(data=st.data(), loss=st.sampled_from(LOSSES))
    def report_all_that_is_open(self, data: st.DataObject, loss: float) -> None:
        for step in data.draw(st.permutations(sorted(self.run.steps))):
            if not self.twin.steps[step].closed and not any(self.twin.steps[step].reported):
                losses = [float(np.float32(loss * (1 + k % 3))) for k in range(self.twin.batch_size)]
                self.do(e.LossesReported(step, 0, {"loss": f32(losses)}))
                self.twin.apply(op.Report(step, 0, {"loss": losses}))

    @rule(data=st.data(), ahead=st.none() | st.integers(-6, 2))
    def observe(self, data: st.DataObject, ahead: int | None) -> None:
        ids = data.draw(st.lists(st.integers(0, self.twin.size - 1), min_size=1, max_size=5))
        losses = [data.draw(st.sampled_from(LOSSES)) for _ in ids]
        step = None if ahead is None else max(0, self.run.next_step + ahead)
        self.do(e.SignalsObserved(step, np.array(ids), {"loss": f32(losses)}))
        self.twin.apply(op.Observe(step, ids, {"loss": rounded(losses)}))

    @precondition(lambda self: self.run.steps)
    @rule(data=st.data(), reason=st.sampled_from(["timeout", "owner"]))
    def close_step(self, data: st.DataObject, reason: str) -> None:
        step = data.draw(st.sampled_from(sorted(self.run.steps)))
        self.do(e.StepClosed(step, reason))
        self.twin.apply(op.Close(step))

    # ---- the owner ----

    @rule(more=st.integers(1, 5), in_groups=st.booleans())
    def grow(self, more: int, in_groups: bool) -> None:
        self.do(e.DatasetGrown(self.twin.size + more))
        self.twin.apply(op.Grow(self.twin.size + more))
        if in_groups:
            self.set_groups(self.twin.size - more, self.twin.size, [2, 0])

    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        ids = data.draw(st.sets(st.integers(0, self.twin.size - 1), min_size=1, max_size=3))
        if len(self.twin.retired | ids) < self.twin.size:
            self.do(e.IdsRetired(np.array(sorted(ids))))
            self.twin.apply(op.Retire(frozenset(ids)))

    @precondition(lambda self: "quality" in self.run.examples.columns)
    @rule(data=st.data())
    def set_column(self, data: st.DataObject) -> None:
        ids = sorted(data.draw(st.sets(st.integers(0, self.twin.size - 1), min_size=1)))
        values = [data.draw(st.sampled_from(VALUES)) for _ in ids]
        self.do(e.ColumnSet("quality", np.array(ids), f32(values)))
        self.twin.apply(op.SetColumn("quality", dict(zip(ids, values, strict=True))))

    def set_groups(self, first: int, stop: int, groups: list[float]) -> None:
        """In turn, as an owner does who knows the group of each example."""
        if "group" in self.run.examples.columns:
            values = [groups[i % len(groups)] for i in range(first, stop)]
            self.do(e.ColumnSet("group", np.arange(first, stop), f32(values)))
            self.twin.apply(op.SetColumn("group", dict(zip(range(first, stop), values, strict=True))))

    @precondition(lambda self: "group" in self.run.examples.columns)
    @rule(data=st.data())
    def set_some_groups(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.integers(0, self.twin.size - 1), min_size=1, max_size=4, unique=True))
        values = [data.draw(st.sampled_from([0.0, 1.0, 2.0, 4.0, NAN])) for _ in ids]
        self.do(e.ColumnSet("group", np.array(ids), f32(values)))
        self.twin.apply(op.SetColumn("group", dict(zip(ids, values, strict=True))))

    @rule(draw=st.none() | st.sampled_from(DRAWS), mix=st.sampled_from(MIXES))
    def change_policy(self, draw: dict[str, Any] | None, mix: dict[str, Any]) -> None:
        had_groups = "group" in self.run.examples.columns
        policy = parse_policy(draw or self.twin.draw, RUN_MAX, mix).canonical()
        if (policy["draw"], policy["mix"]) == (self.twin.draw, self.twin.mix):
            return
        kept = set(self.run.examples.columns)
        self.do(e.PolicyChanged(policy))
        self.twin.apply(op.ChangePolicy(policy["draw"], policy["weigh"], policy["mix"]))
        if not had_groups:
            self.set_groups(0, self.twin.size, [0, 1, 2, 2])
        if self.twin.reads_reports and not kept.issuperset(names := parts_of(self.twin.score)):
            # What the run's history tells of the columns that it lacks.
            for name in names:
                self.do(e.ColumnSet(name, np.arange(self.twin.size), f32(self.twin.columns[name])))

    @rule(name=st.sampled_from("ab"), data=st.data())
    def bookmark(self, name: str, data: st.DataObject) -> None:
        step = data.draw(st.none() | st.integers(0, self.run.next_step))
        self.do(e.Bookmarked(name, step))
        assert self.run.bookmarks.get(name) == step

    @rule(token=st.sampled_from("xyz"), data=st.data())
    def begin_attempt(self, token: str, data: st.DataObject) -> None:
        start = data.draw(st.integers(self.run.closed_steps, self.run.next_step))
        self.do(e.AttemptBegan(token, 2, start))
        self.twin.apply(op.Attempt(token, 2, start))
        assert self.run.attempts.current == token

    # ---- the server ----

    @rule()
    def checkpoint(self) -> None:
        before = self.checkpoints[-1] if self.checkpoints else None
        self.checkpoints.append(Checkpoint(len(self.events), self.run, before))

    @precondition(lambda self: self.checkpoints)
    @rule()
    def crash_and_recover(self) -> None:
        self.run = self.recovered(self.checkpoints[-1])

    def recovered(self, checkpoint: Checkpoint) -> RunState:
        run = checkpoint.restore()
        for event in self.events[checkpoint.at :]:
            run.apply(event)
        return run

    # ---- what must hold ----

    @invariant()
    def agrees_with_the_twin(self) -> None:
        self.run.check()
        twin, run = self.twin, self.run
        assert run.next_step == twin.next_step
        assert (run.closed_steps, run.folded_steps) == (twin.closed_steps, twin.folded_steps)
        assert run.examples.size == twin.size
        assert set(run.examples.retired.tolist()) == twin.retired
        for step, record in run.steps.items():
            assert record.closed == twin.steps[step].closed
        assert min(run.steps, default=run.next_step) == twin.held
        assert len(run.steps) <= twin.window + 1
        saved = self.checkpoints[-1].history if self.checkpoints else []
        assert same_history([*saved, *history_of(run)], twin)
        assert set(run.examples.columns) == set(twin.columns)
        for name, values in twin.columns.items():
            np.testing.assert_array_equal(run.examples.columns[name], f32(values), name)

    def teardown(self) -> None:
        if not hasattr(self, "run"):
            return
        try:
            self.replays_to_the_same_state()
        finally:
            for patch in self.patches:
                patch.stop()

    def replays_to_the_same_state(self) -> None:
        expected = fingerprint(self.run)
        batches = the_next_batches(self.run)
        created, *rest = self.events
        again = RunState(created)  # type: ignore[arg-type]
        for event in rest:
            again.apply(event)
        assert fingerprint(again) == expected
        assert the_next_batches(again) == batches
        assert same_history(history_of(again), self.twin)
        for checkpoint in self.checkpoints:
            run = self.recovered(checkpoint)
            assert fingerprint(run) == expected, (
                f"from the checkpoint at {checkpoint.at} of {len(self.events)}"
            )
            assert the_next_batches(run) == batches
            assert same_history([*checkpoint.history, *history_of(run)], self.twin)


def rounded(losses: list[float]) -> list[float]:
    """As they come back from float32."""
    return [float(loss) for loss in f32(losses)]


def same_history(mine: list[tuple[int, int, float]], twin: Twin) -> bool:
    """Whether the folded losses of each example are the twin's, in its order."""
    entries: list[list[tuple[int, float]]] = [[] for _ in range(twin.size)]
    for step, example, loss in mine:
        entries[example].append((step, loss))
    return all(
        len(one) == len(other)
        and all(a[0] == b[0] and same(a[1], b[1]) for a, b in zip(one, other, strict=True))
        for one, other in zip(entries, twin.past, strict=True)
    )


TestFoldAgreesWithItsTwin = Fold.TestCase
# Shrinking a failure takes minutes: let it (phases=tuple(Phase)) when there is one.
TestFoldAgreesWithItsTwin.settings = settings(
    max_examples=60, stateful_step_count=40, phases=[Phase.generate]
)


# ---- the same bytes everywhere ----


def a_run_with_everything() -> RunState:
    """Sixty steps under three policies, with growth, retirement, gaps and a static column."""
    run = RunState(e.RunCreated(specification(16, 2, 11, DRAWS[5]), 300))
    for step in range(60):
        if step == 20:
            run.apply(e.PolicyChanged(parse_policy(DRAWS[3], {"method": "uniform"}).canonical()))
            run.apply(e.DatasetGrown(400))
        if step == 40:
            run.apply(e.PolicyChanged(parse_policy(DRAWS[6], {"method": "uniform"}).canonical()))
            run.apply(e.ColumnSet("quality", np.arange(400), (np.arange(400) % 23 / 23).astype(np.float32)))
            run.apply(e.IdsRetired(np.arange(0, 400, 7)))
        drawn = run.draw()
        run.apply(drawn)
        losses = (np.arange(16) * (step + 7) % 31 / 8).astype(np.float32)
        run.apply(e.LossesReported(step, 0, {"loss": losses[:9]}))
        if step % 5:
            run.apply(e.LossesReported(step, 9, {"loss": losses[9:]}))
        else:
            run.apply(e.StepClosed(step, "owner"))
        run.apply(e.SignalsObserved(step, np.arange(3), {"loss": losses[:3]}))
    return run


PINNED = "f5131cebf23c572e049d2ee98e56ba0c"
"""Pinned: another version, machine or Python must come to the same state, or it cannot continue the run."""


def test_the_same_events_give_the_same_columns_and_batches_on_every_machine() -> None:
    run = a_run_with_everything()
    digest = hashlib.blake2b(digest_size=16)
    for record in run.steps.values():
        digest.update(f"{record.drawn.digest} {record.drawn.state_version}".encode())
        assert record.drawn.probability is not None
        digest.update(record.drawn.probability.astype("<f8").tobytes())
    for name, column in sorted(run.examples.columns.items()):
        digest.update(name.encode() + column.astype("<f4").tobytes())
    digest.update(repr(history_of(run)).encode())
    assert digest.hexdigest() == PINNED


def test_the_same_events_give_the_same_bytes_in_another_process_with_another_hash_seed() -> None:
    program = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('fold', sys.argv[1])\n"
        "fold = importlib.util.module_from_spec(spec); sys.modules['fold'] = fold; spec.loader.exec_module(fold)\n"
        "print(fold.fingerprint(fold.a_run_with_everything()))\n"
    )
    here = pathlib.Path(__file__).resolve()
    answers = {
        subprocess.run(
            [sys.executable, "-c", program, str(here)],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert answers == {fingerprint(a_run_with_everything())}
