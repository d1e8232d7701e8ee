"""A real server against the dumb twin: every id, probability, weight, column and count, through every operation.

The server is driven by the public client alone: trainers that join in any number and order, report in pieces, twice,
late and wrongly, die and come back; an owner that changes policy and dataset, goes back and forks; kill -9, SIGTERM
and standstill of the server. The twin (tests/twin) knows the rules and no code of ours. Where timing is an input (what
had arrived when a batch was drawn) the driver waits until the server has done what the twin says that it does.

TWIN_EXAMPLES=1000 searches further, with new examples each time, and shrinks what it finds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twin import operations as op
from twin import weights
from twin.columns import rounded, signal_of
from twin.run import Dataset, Run, slice_of
from twin.scored import Scored
from twin.seats import Seat, pump
from twin.state import State, full_draw

import steelyard
from steelyard.testing import ServerProcess

EXAMPLES = int(os.environ.get("TWIN_EXAMPLES", "0"))
WAIT = 60.0
NAN = float("nan")
LOSSES = [0.0, 0.125, 1.0, 2.7, 3.5, 11.0, 1e-30, 1e30, NAN, math.inf, -1.0]
VALUES = [0.0, 0.5, 2.0, 1e30, 1e-3, NAN]
QUALITY = "quality"
DRAWS: list[dict[str, Any]] = [
    {"method": "shuffle"},
    {"method": "scored"},
    {"method": "scored", "sampling": "distinct", "alpha": 0.5, "floor": 0.1},
    {"method": "scored", "sampling": "independent", "floor": 0.25, "unseen": 0.0},
    {"method": "scored", "sampling": "stratified", "score": "mean_loss", "unseen": "mean"},
    {
        "method": "scored",
        "sampling": "stratified",
        "score": "ema_loss",
        "ema_decay": 0.6,
        "transform": "softmax",
        "temperature": 0.7,
        "unseen": 2.0,
    },
    {"method": "scored", "sampling": "independent", "score": "count_loss", "transform": "identity"},
    {"method": "scored", "score": "last_el2n", "floor": 0.01},
    {"method": "scored", "sampling": "independent", "score": QUALITY, "transform": "identity"},
]
WEIGHS: list[dict[str, Any]] = [
    {"method": "uniform"},
    {"method": "importance", "beta": 0.7, "normalise": "batch_max"},
    {"method": "importance"},
    {"method": "importance", "beta": 0.6, "normalise": "run_max"},
    {"method": "linupper", "r": 0.4, "warmup_steps": 2},
    {"method": "quadratic", "where": "server"},
    {"method": "extremes", "delta": 2.0},
    {"method": "upper", "r": 2.0, "r_schedule": [[2, 0.5], [5, 1.5]]},
]
WORK = ["step", "step", "step", "take", "report", "close"]
numbers = itertools.count()


def is_refused(draw: dict[str, Any], weigh: dict[str, Any]) -> bool:
    """Whether the losses would count twice."""
    return signal_of(draw.get("score", "")) == "loss" and weights.reads_losses(weigh)


def policies_with(
    draws: Sequence[dict[str, Any]],
) -> st.SearchStrategy[tuple[dict[str, Any], dict[str, Any]]]:
    both = st.tuples(st.sampled_from([full_draw(draw) for draw in draws]), st.sampled_from(WEIGHS))
    return both.filter(lambda policy: not is_refused(*policy))


specifications = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 5),
        "seed": st.integers(0, 2**64 - 1),
        "on_nonfinite": st.sampled_from(["skip", "skip", "reject"]),
        "history_size": st.sampled_from([8, 3, 1, 0]),
    }
)


@dataclasses.dataclass(eq=False, repr=False)
class Member:
    """A live session, and what it was handed."""

    session: steelyard.Session
    seat: Seat
    handed: int
    batches: dict[int, steelyard.Batch] = dataclasses.field(default_factory=dict)
    owed: set[int] = dataclasses.field(default_factory=set)
    """Steps that were handed out and not reported as a whole."""

    def __repr__(self) -> str:
        return f"rank {self.seat.rank} of {self.seat.world_size}"


@dataclasses.dataclass(eq=False)
class Asked:
    """Weights that a report asked for."""

    member: Member
    step: int
    offset: int
    count: int
    pending: Any


@dataclasses.dataclass(eq=False, repr=False)
class Driven:
    """A run of the server, its twin and its trainers."""

    handle: steelyard.Run
    twin: Run
    story: list[str]
    members: list[Member] = dataclasses.field(default_factory=list)
    asked: list[Asked] = dataclasses.field(default_factory=list)
    tally: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"duplicate": 0, "late": 0, "refused": 0}
    )
    drawn: int = 0
    """Steps that the server is known to have drawn."""
    verified: int = 0
    """Steps below this one were compared."""

    @property
    def name(self) -> str:
        return self.handle.name

    def __repr__(self) -> str:
        return self.name

    def do(self, operation: op.Operation) -> None:
        self.story.append(f"{self.name}: {operation}")
        self.twin.do(operation)
        self.pump()

    def pump(self) -> None:
        """What the server draws and sends on every occasion."""
        seats = [member.seat for member in self.members]
        pump(self.twin, seats)
        if self.members and not seats:
            for member in self.members:
                ends_with(member.session, steelyard.FailedPrecondition)
            self.members = []

    def part(self, member: Member, step: int) -> tuple[int, int]:
        return slice_of(self.twin.state.batch_size, member.seat.world_size, member.seat.rank)

    def forget_members(self) -> None:
        for member in self.members:
            member.session.close()
        self.members, self.asked = [], []


def ends_with(session: steelyard.Session, error: type[Exception]) -> None:
    """The session ends by itself, and says why."""
    deadline = time.monotonic() + WAIT
    try:
        while time.monotonic() < deadline:
            session.flush(WAIT)
            time.sleep(0.005)
    except error:
        session.close()
        return
    raise AssertionError(f"{session!r} still stands, expected {error.__name__}")


class Machine(RuleBasedStateMachine):
    process: ServerProcess
    client: steelyard.Client
    staleness: Sequence[int | str] = (1, 0, 3)
    draws: Sequence[dict[str, Any]] = DRAWS

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Driven] = []
        self.touched: list[Driven] = []
        self.tokens = 0
        self.story: list[str] = []

    @initialize(
        spec=specifications,
        more=st.integers(0, 9),
        quality=st.lists(st.sampled_from(VALUES), min_size=3, max_size=3),
        restarts=st.sampled_from([0, 0, 1]),
        data=st.data(),
    )
    def begin(
        self,
        spec: dict[str, Any],
        more: int,
        quality: list[float],
        restarts: int,
        data: st.DataObject,
    ) -> None:
        self.restarts = restarts
        draw, weigh = data.draw(policies_with(self.draws))
        staleness = data.draw(st.sampled_from(self.staleness))
        values = {**spec, "draw": draw, "weigh": weigh, "staleness": staleness}
        self.create(values, spec["batch_size"] + 2 + more, quality)
        self.join(data)

    def create(self, values: dict[str, Any], size: int, quality: list[float]) -> Driven:
        number = next(numbers)
        self.dataset_name = f"d{number}"
        self.dataset = Dataset(size, columns={QUALITY: dict(enumerate(map(rounded, quality)))})
        self.client.create_dataset(self.dataset_name, size)
        self.client.set_column(self.dataset_name, QUALITY, quality)
        self.say(f"r{number}: {size} ids, quality {quality}, {values}")
        handle = self.client.create_run(f"r{number}", dataset=self.dataset_name, **values)
        run = Driven(handle, Run(values, size), self.story)
        self.runs.append(run)
        run.twin.take_news(self.dataset)
        self.touched = [run]
        return run

    def pick(self, data: st.DataObject) -> Driven:
        """The run that a rule is about, once its trainers have gone on a little."""
        run = data.draw(st.sampled_from(self.runs)) if len(self.runs) > 1 else self.runs[0]
        self.touched = [run]
        for word in data.draw(st.lists(st.sampled_from(WORK), min_size=1, max_size=8)):
            able = [member for member in run.members if member.handed < member.seat.cursor]
            owing = [member for member in run.members if member.owed]
            if word == "take" and able:
                self.take_one(run, data.draw(st.sampled_from(able)))
            elif word == "step" and (able or owing):
                self.take_a_step(run, data.draw(st.sampled_from(owing or able)))
            elif word == "report":
                self.report_something(run, data)
            elif word == "close" and run.members and run.twin.state.waits:
                self.close(run, run.twin.state.closed_steps)
        return run

    # ---- trainers ----

    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        """A new launch: some or all of its ranks, in any order."""
        run = self.pick(data)
        if run.twin.state.cannot_draw:
            return
        world_size = data.draw(st.sampled_from([2, 1, 3, 2, 1, 4, 7]))
        start = data.draw(st.none() | st.integers(run.twin.oldest_step, run.twin.state.next_step))
        ranks = data.draw(st.permutations(range(world_size)))
        ranks = ranks[: data.draw(st.sampled_from([world_size, world_size, 1, (world_size + 1) // 2]))]
        self.launch(run, world_size, start, ranks, data.draw(st.integers(1, 3)))

    def launch(
        self, run: Driven, world_size: int, start: int | None, ranks: list[int], prefetch: int = 1
    ) -> None:
        self.say(f"{run.name}: ranks {ranks} of {world_size} from {start} on, {prefetch} ahead")
        self.tokens += 1
        token, old = f"t{self.tokens}", list(run.twin.state.tokens)
        session = run.handle.join(
            ranks[0], world_size, start, token, prefetch=prefetch, timeout=WAIT, reconnect_timeout=WAIT
        )
        self.end_members(run)
        begins = run.twin.begin_attempt(token, world_size, start)
        run.twin.take_news(self.dataset)
        run.verified = min(run.verified, begins)
        self.seat(run, session, prefetch)
        for rank in ranks[1:]:
            session = run.handle.join(
                rank, world_size, start, token, prefetch=prefetch, timeout=WAIT, reconnect_timeout=WAIT
            )
            self.seat(run, session, prefetch)
        if old and old[-1]:
            with pytest.raises(steelyard.Aborted):
                run.handle.join(0, 1, None, old[-1])

    def seat(self, run: Driven, session: steelyard.Session, prefetch: int) -> None:
        first = run.twin.first_step_of(session.world_size, session.rank)
        self.say(f"{run.name}: rank {session.rank} begins at {first}")
        assert session.start_step == first
        run.members.append(Member(session, Seat(session.rank, session.world_size, first, prefetch), first))
        run.pump()

    def end_members(self, run: Driven) -> None:
        """Trainers of an older launch: what they report is refused and leaves no trace."""
        for member in run.members[:1]:
            for batch in list(member.batches.values())[:1]:
                with contextlib.suppress(steelyard.Aborted):
                    member.session.report_raw(batch, np.full(len(batch), 7.0))
        for member in run.members:
            ends_with(member.session, steelyard.Aborted)
        run.forget_members()

    @rule(data=st.data())
    def join_late(self, data: st.DataObject) -> None:
        """A rank that was not there yet, or comes back."""
        run = self.pick(data)
        state = run.twin.state
        free = sorted(set(range(state.world_size)) - {member.seat.rank for member in run.members})
        if not state.tokens or not state.tokens[-1] or state.cannot_draw or not free:
            return
        rank, prefetch = data.draw(st.sampled_from(free)), data.draw(st.integers(1, 2))
        token, size = state.tokens[-1], state.world_size
        with pytest.raises(steelyard.FailedPrecondition):
            run.handle.join(rank, size + 1, None, token)
        session = run.handle.join(
            rank, size, None, token, prefetch=prefetch, timeout=WAIT, reconnect_timeout=WAIT
        )
        self.seat(run, session, prefetch)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        run = self.pick(data)
        if len(run.members) > 1:
            member = data.draw(st.sampled_from(run.members))
            self.flush(run)
            self.say(f"{run.name}: rank {member.seat.rank} leaves")
            member.session.leave(WAIT)
            run.members.remove(member)
            run.asked = [asked for asked in run.asked if asked.member is not member]

    def take_one(self, run: Driven, member: Member) -> steelyard.Batch:
        self.say(f"{run.name}: rank {member.seat.rank} takes {member.handed}")
        batch = await_batch(member)
        served, (offset, count) = run.twin.state.steps[member.handed], run.part(member, member.handed)
        assert (batch.step, batch.offset, len(batch)) == (member.handed, offset, count)
        part = slice(offset, offset + count)
        assert batch.ids.tolist() == served.ids[part], batch.step
        assert batch.probability.tolist() == served.probability[part], batch.step
        assert (batch.state_version, batch.digest) == (served.version, served.digest), batch.step
        weight = run.twin.state.weights_by_draw(batch.step)[part]
        np.testing.assert_allclose(batch.weight, weight, rtol=1e-6)
        member.batches[batch.step] = batch
        member.owed.add(batch.step)
        member.handed += 1
        member.seat.credit += 1
        run.pump()
        self.await_draws(run)
        return batch

    def would_wait(self, run: Driven) -> None:
        """A trainer that would wait for its own report is told so at once."""
        state = run.twin.state
        for member in run.members:
            needed = member.handed - 1 - (state.staleness if isinstance(state.staleness, int) else 0)
            if (
                member.handed == member.seat.cursor == state.next_step
                and state.waits
                and member.session.reads_reports
                and needed in member.batches
                and needed == state.closed_steps
            ):
                offset, count = run.part(member, needed)
                if count and not any(state.steps[needed].reported[offset : offset + count]):
                    with pytest.raises(steelyard.StalenessError):
                        member.session.next(WAIT)

    # ---- reports ----

    @rule(data=st.data(), many=st.integers(1, 4))
    def train(self, data: st.DataObject, many: int) -> None:
        """Whole slices are taken and reported, each rank as far as it comes."""
        run = self.pick(data)
        self.go_on(run, many)
        self.would_wait(run)

    def go_on(self, run: Driven, many: int) -> None:
        for _ in range(many):
            for member in list(run.members):
                if member in run.members and (member.owed or member.handed < member.seat.cursor):
                    self.take_a_step(run, member)

    def take_a_step(self, run: Driven, member: Member) -> None:
        """What is owed of a batch that was handed out is reported; where nothing is, the next one is."""
        batch = member.batches[min(member.owed)] if member.owed else self.take_one(run, member)
        known = run.twin.state.steps[batch.step]
        losses = [float(np.float32((i * 37 % 11) / 4 + batch.step % 3)) for i in batch.ids]
        signals = {"loss": losses, "el2n": losses}
        for name in known.signals:
            for k, at in enumerate(range(batch.offset, batch.offset + len(batch))):
                if known.reported[at]:
                    signals[name][k] = known.signals[name][at]
        if any(known.reported) and "el2n" not in known.signals:
            del signals["el2n"]
        if len(batch):
            self.report_part(run, member, batch, 0, signals, want=False)
        member.owed.discard(batch.step)

    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        run = self.pick(data)
        self.report_something(run, data)

    def report_something(self, run: Driven, data: st.DataObject) -> None:
        """A part of a slice: new, known, contradicting, late, not finite."""
        able = [m for m in run.members if any(len(batch) for batch in m.batches.values())]
        if able:
            member = data.draw(st.sampled_from(able))
            batch, first, signals = self.draw_report(run, member, data)
            self.report_part(run, member, batch, first, signals, want=data.draw(st.booleans()))

    def draw_report(
        self, run: Driven, member: Member, data: st.DataObject
    ) -> tuple[steelyard.Batch, int, dict[str, list[float]]]:
        step = data.draw(
            st.sampled_from(sorted((k for k, b in member.batches.items() if len(b)), reverse=True))
        )
        batch, served = member.batches[step], run.twin.state.steps[step]
        first = data.draw(st.integers(0, len(batch) - 1))
        count = data.draw(st.sampled_from([len(batch) - first, 1]))
        names: list[str] = data.draw(st.sampled_from([["loss"], ["loss"], ["loss", "el2n"]]))
        faithful: bool = data.draw(st.integers(0, 4)) > 0
        signals: dict[str, list[float]] = {}
        for name in names:
            values = data.draw(st.lists(st.sampled_from(LOSSES), min_size=count, max_size=count))
            for k in range(count):
                at = batch.offset + first + k
                if faithful and served.reported[at] and name in served.signals:
                    values[k] = served.signals[name][at]
            signals[name] = [rounded(value) for value in values]
        return batch, first, signals

    def report_part(
        self,
        run: Driven,
        member: Member,
        batch: steelyard.Batch,
        first: int,
        signals: dict[str, list[float]],
        *,
        want: bool,
    ) -> None:
        offset, count = batch.offset + first, len(signals["loss"])
        verdict = run.twin.state.judge(batch.step, offset, signals)
        self.say(
            f"{run.name}: rank {member.seat.rank} reports {batch.step} from {offset}: {signals}: {verdict}"
        )
        known = run.twin.state.steps[batch.step].reported[offset : offset + count]
        if verdict == "LATE" and (any(known) or run.twin.state.rule_of(batch.step)["method"] == "importance"):
            want = False  # they are 0 by the acknowledgement, and may have come otherwise before it
        rest = {name: values for name, values in signals.items() if name != "loss"}
        pending = member.session.report_raw(
            batch, signals["loss"], signals=rest, offset=first, want_weights=want
        )
        if verdict in ("APPLIED", "DUPLICATE", "LATE"):
            member.session.flush(WAIT)
            if want:
                run.asked.append(Asked(member, batch.step, offset, count, pending))
        else:
            with pytest.raises(steelyard.ReportRefused) as refusal:
                pending.result(WAIT) if want else member.session.flush(WAIT)
            assert refusal.value.code == verdict
        if verdict == "APPLIED":
            run.do(op.Report(batch.step, offset, signals))
        else:
            kind = verdict.lower() if verdict in ("DUPLICATE", "LATE") else "refused"
            run.tally[kind] += 1
        self.await_draws(run)

    @rule(data=st.data())
    def report_of_another_batch(self, data: st.DataObject) -> None:
        run = self.pick(data)
        for member in run.members:
            for batch in [one for one in member.batches.values() if len(one)][:1]:
                other = dataclasses.replace(batch, digest=batch.digest ^ 1)
                member.session.report_raw(other, np.ones(len(batch)))
                with pytest.raises(steelyard.ReportRefused) as refusal:
                    member.session.flush(WAIT)
                assert refusal.value.code == "FAILED_PRECONDITION"
                run.tally["refused"] += 1
                return

    @rule(
        data=st.data(), ahead=st.none() | st.integers(-6, 0), signal=st.sampled_from(["loss", "loss", "el2n"])
    )
    def observe(self, data: st.DataObject, ahead: int | None, signal: str) -> None:
        run = self.pick(data)
        state = run.twin.state
        ids = data.draw(st.lists(st.integers(0, state.size - 1), min_size=1, max_size=5))
        values = [rounded(data.draw(st.sampled_from(LOSSES))) for _ in ids]
        step = None if ahead is None else max(0, state.next_step + ahead)
        if step is not None and step >= state.next_step:
            with pytest.raises(steelyard.FailedPrecondition):
                run.handle.observe(ids, {signal: values}, step=step)
        elif not state.takes({signal: values}):
            with pytest.raises(steelyard.InvalidArgument):
                run.handle.observe(ids, {signal: values}, step=step)
        else:
            run.handle.observe(ids, {signal: values}, step=step)
            run.do(op.Observe(step, ids, {signal: values}))

    @rule(data=st.data())
    def close_step(self, data: st.DataObject) -> None:
        run = self.pick(data)
        state = run.twin.state
        if not state.next_step:
            return
        step = data.draw(st.integers(max(0, state.closed_steps - 1), state.next_step - 1))
        self.close(run, step)

    def close(self, run: Driven, step: int) -> None:
        run.handle.close_step(step)
        if not run.twin.state.steps[step].closed:
            run.do(op.Close(step))
        self.await_draws(run)

    # ---- the owner ----

    @rule(more=st.integers(1, 4))
    def grow(self, more: int) -> None:
        self.client.append_examples(self.dataset_name, more, self.dataset.size)
        self.dataset.size += more
        self.tell_runs()

    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        ids = data.draw(st.sets(st.integers(0, self.dataset.size - 1), min_size=1, max_size=3))
        if len(self.dataset.retired | ids) < self.dataset.size:
            self.client.retire(self.dataset_name, sorted(ids))
            self.dataset.retired = self.dataset.retired | ids
            self.tell_runs()

    @rule(data=st.data())
    def set_column(self, data: st.DataObject) -> None:
        ids = sorted(data.draw(st.sets(st.integers(0, self.dataset.size - 1), min_size=1, max_size=6)))
        values = [rounded(data.draw(st.sampled_from(VALUES))) for _ in ids]
        self.client.set_column(self.dataset_name, QUALITY, values, ids=ids)
        self.dataset.columns[QUALITY].update(zip(ids, values, strict=True))
        self.tell_runs()

    def tell_runs(self) -> None:
        self.touched = list(self.runs)
        for run in self.runs:
            self.say(f"{run.name}: {self.dataset}")
            run.twin.take_news(self.dataset)
            run.pump()

    @rule(data=st.data())
    def change_policy(self, data: st.DataObject) -> None:
        run = self.pick(data)
        state = run.twin.state
        draw = data.draw(st.none() | st.sampled_from(DRAWS))
        weigh = data.draw(st.none() | st.sampled_from(WEIGHS))
        new_draw = full_draw(draw or state.draw)
        if is_refused(new_draw, weigh or state.weigh) or self.too_small(run, new_draw):
            with pytest.raises(steelyard.InvalidArgument):
                run.handle.change_policy(draw, weigh)
            return
        self.change_policy_of(run, draw, weigh)

    def change_policy_of(
        self, run: Driven, draw: dict[str, Any] | None, weigh: dict[str, Any] | None
    ) -> None:
        self.say(f"{run.name}: draws by {draw}, weighs by {weigh}")
        run.handle.change_policy(draw, weigh)
        run.twin.change_policy(draw, weigh)
        run.twin.take_news(self.dataset)
        run.pump()

    def too_small(self, run: Driven, draw: dict[str, Any]) -> bool:
        least = run.twin.state.batch_size if draw.get("sampling") == "distinct" else 1
        return self.dataset.size - len(self.dataset.retired) < least

    @rule(data=st.data(), name=st.sampled_from("ab"))
    def bookmark(self, data: st.DataObject, name: str) -> None:
        run = self.pick(data)
        state = run.twin.state
        step = data.draw(st.none() | st.integers(run.twin.oldest_step, state.next_step))
        at = state.closed_steps if step is None else step
        if state.bookmarks.get(name, at) != at:
            with pytest.raises(steelyard.AlreadyExists):
                run.handle.bookmark(name, step)
            return
        assert run.handle.bookmark(name, step) == at
        if name not in state.bookmarks:
            run.do(op.Bookmark(name, at))

    @rule(data=st.data(), name=st.sampled_from("ab"))
    def delete_bookmark(self, data: st.DataObject, name: str) -> None:
        run = self.pick(data)
        run.handle.delete_bookmark(name)
        if name in run.twin.state.bookmarks:
            run.do(op.Bookmark(name, None))

    @precondition(lambda self: any(run.twin.state.next_step > 2 for run in self.runs))
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        run = self.pick(data)
        to, step = self.place(run, data)
        self.say(f"{run.name}: goes back to {to!r}, step {step}")
        run.handle.rewind(to)
        self.end_members(run)
        run.twin.rewind(step)
        run.twin.take_news(self.dataset)
        run.verified = min(run.verified, step)

    def place(self, run: Driven, data: st.DataObject) -> tuple[int | str, int]:
        """A step to go back to, and how it is said."""
        marks = sorted(run.twin.state.bookmarks)
        by_name: bool = data.draw(st.booleans())
        if marks and by_name:
            name = data.draw(st.sampled_from(marks))
            return name, run.twin.state.bookmarks[name]
        step = data.draw(st.integers(run.twin.oldest_step, run.twin.state.next_step))
        return step, step

    @precondition(lambda self: len(self.runs) < 3 and any(run.twin.state.next_step > 2 for run in self.runs))
    @rule(data=st.data(), policy=st.none() | policies_with(DRAWS))
    def fork(self, data: st.DataObject, policy: tuple[dict[str, Any], dict[str, Any]] | None) -> None:
        run = self.pick(data)
        to, step = self.place(run, data)
        draw, weigh = policy or (None, None)
        self.say(f"{run.name}: forked at {to!r}, step {step}, to draw by {draw}, weigh by {weigh}")
        twin = run.twin.fork(step, draw, weigh)
        if self.too_small(run, twin.state.draw):
            return
        handle = run.handle.fork(f"{run.name}-{len(self.runs)}", step=to, draw=draw, weigh=weigh)
        assert (handle.info().parent, handle.info().parent_step) == (run.name, step)
        twin.take_news(self.dataset)
        new = Driven(handle, twin, self.story)
        self.runs.append(new)
        self.touched = [run, new]

    # ---- the server ----

    @precondition(lambda self: self.restarts > 0)
    @rule(data=st.data(), stands=st.booleans())
    def kill(self, data: st.DataObject, stands: bool) -> None:
        """kill -9 with reports on their way, which the server may or may not have taken."""
        self.pick(data)
        ready = [one for run in self.runs for one in self.unseen_reports(run, data)]
        self.restarts -= 1
        if stands:
            self.process.pause()
        for send in ready:
            send()
        self.say(f"killed with {len(ready)} reports on their way")
        self.process.kill()
        self.process.start()
        self.come_back(len(ready))

    def unseen_reports(self, run: Driven, data: st.DataObject) -> Iterator[Callable[[], None]]:
        """Reports that apply, to be sent without waiting for their acknowledgements. Only of one trainer where the
        order in which they arrive would be an input."""
        for member in run.members[: 1 if run.twin.state.staleness == "any" else None]:
            if not any(len(batch) for batch in member.batches.values()):
                continue
            batch, first, signals = self.draw_report(run, member, data)
            if run.twin.state.judge(batch.step, batch.offset + first, signals) == "APPLIED":
                yield functools.partial(self.send_unseen, run, member, batch, first, signals)

    def send_unseen(
        self, run: Driven, member: Member, batch: steelyard.Batch, first: int, signals: dict[str, list[float]]
    ) -> None:
        rest = {name: values for name, values in signals.items() if name != "loss"}
        member.session.report_raw(batch, signals["loss"], signals=rest, offset=first)
        self.say(
            f"{run.name}: rank {member.seat.rank} sends {batch.step} from {batch.offset + first}: {signals}"
        )
        run.twin.do(op.Report(batch.step, batch.offset + first, signals))

    @precondition(lambda self: self.restarts > 0)
    @rule(data=st.data())
    def stop_and_start(self, data: st.DataObject) -> None:
        self.pick(data)
        self.restarts -= 1
        self.say("the server is told to stop")
        assert self.process.terminate() == 0
        self.process.start()
        self.come_back(0)

    def come_back(self, sent: int) -> None:
        """The sessions join again by themselves, and send what was not acknowledged, or waits for its weights."""
        self.touched = list(self.runs)
        for run in self.runs:
            self.until(functools.partial(connected, run), len(run.members), "connected ranks")
            for member in run.members:
                member.session.flush(WAIT)
            run.pump()
            self.await_draws(run)
            tally = self.tally(run)
            assert tally["late"] == tally["refused"] == 0
            assert tally["duplicate"] <= sent + len(run.asked)
            run.tally = tally

    @rule(data=st.data())
    def stand_still(self, data: st.DataObject) -> None:
        """SIGSTOP: a report waits until the server goes on."""
        run = self.pick(data)
        ready = list(self.unseen_reports(run, data))
        self.process.pause()
        try:
            for send in ready:
                send()
        finally:
            self.process.resume()
        self.flush(run)
        run.pump()

    # ---- what must hold ----

    @invariant()
    def agrees(self) -> None:
        for run in self.touched:
            self.flush(run)
            self.await_draws(run)
            self.compare(run)
        self.touched = []

    def flush(self, run: Driven) -> None:
        for member in run.members:
            member.session.flush(WAIT)

    def await_draws(self, run: Driven) -> None:
        """On return the server has drawn what the twin says that it draws; `compare` says whether that was all."""
        if run.drawn != run.twin.state.next_step:
            self.until(lambda: run.handle.info().next_step, run.twin.state.next_step, "next step")
            run.drawn = run.twin.state.next_step

    def until(self, question: Callable[[], int], expected: int, what: str) -> None:
        deadline = time.monotonic() + WAIT / 4
        while (answer := question()) != expected:
            assert time.monotonic() < deadline, f"{what}: the twin has {expected}, the server {answer}"
            time.sleep(0.002)

    def compare(self, run: Driven) -> None:
        state, info = run.twin.state, run.handle.info()
        assert (info.next_step, info.closed_steps) == (state.next_step, state.closed_steps)
        assert (info.oldest_step, info.dataset_size) == (run.twin.oldest_step, state.size)
        assert (info.attempt, dict(info.bookmarks)) == ((state.tokens or [""])[-1], state.bookmarks)
        assert (dict(info.draw), dict(info.weigh)) == (state.draw, state.weigh)
        self.compare_stats(run)
        for name, values in state.columns.items():
            np.testing.assert_array_equal(run.handle.column(name), np.array(values, np.float32), name)
        compare_histories(run.handle.history(range(state.size)), state.history())
        self.compare_batches(run, run.verified)
        run.verified = state.next_step
        self.compare_weights(run)

    def tally(self, run: Driven) -> dict[str, int]:
        stats = run.handle.stats()
        return {kind: getattr(stats, f"{kind}_reports") for kind in ("duplicate", "late", "refused")}

    def compare_stats(self, run: Driven) -> None:
        state, stats = run.twin.state, run.handle.stats()
        mine = {
            "next_step": state.next_step,
            "closed_steps": state.closed_steps,
            "folded_steps": state.folded_steps,
            "state_version": state.version,
            **dataclasses.asdict(state.counters),
            **{f"{kind}_reports": count for kind, count in run.tally.items()},
            "closed_by_timeout": 0,
            "drawable": state.drawable,
            "never_reported": state.never_reported(),
            "connected_ranks": len(run.members),
            "oldest_step": run.twin.oldest_step,
        }
        assert {name: getattr(stats, name) for name in mine} == mine
        assert stats.mean_loss == pytest.approx(state.mean_loss(), rel=1e-6, nan_ok=True)
        assert stats.effective_sample_ratio == pytest.approx(state.effective_sample_ratio(), rel=1e-9)

    def compare_batches(self, run: Driven, since: int) -> None:
        state = run.twin.state
        for step in range(max(since, run.twin.oldest_step), state.next_step):
            batch, served = run.handle.batch(step), state.steps[step]
            assert batch.ids.tolist() == served.ids, step
            assert batch.probability.tolist() == served.probability, step
            assert (batch.state_version, batch.digest) == (served.version, served.digest), step
            np.testing.assert_allclose(
                batch.weight, state.weights_of(step), rtol=1e-6, atol=1e-9, err_msg=str(step)
            )

    def compare_weights(self, run: Driven) -> None:
        """Those that reports asked for, as soon as their steps are closed."""
        state = run.twin.state
        for asked in list(run.asked):
            if state.steps[asked.step].closed:
                rule = state.rule_of(asked.step)
                every = (
                    state.weights_by_losses(asked.step)
                    if weights.reads_losses(rule)
                    else weights_without_losses(state, asked.step)
                )
                part = every[asked.offset : asked.offset + asked.count]
                np.testing.assert_allclose(asked.pending.result(WAIT), part, rtol=1e-6, atol=1e-9)
                run.asked.remove(asked)

    def say(self, words: str) -> None:
        self.story.append(words)

    def teardown(self) -> None:
        if isinstance(sys.exc_info()[1], AssertionError | steelyard.SteelyardError):
            # Here and not by notes: what timing has a part in may not fail again when it is told.
            print("What happened:", *self.story, sep="\n  ")
        try:
            if not self.touched:
                self.look_back()
        finally:
            for run in self.runs:
                run.forget_members()

    def look_back(self) -> None:
        """Everything retained once more, and three steps that one trainer goes on."""
        for run in self.runs:
            self.compare_batches(run, 0)
            if not run.twin.state.cannot_draw:
                self.launch(run, 1, None, [0])
                self.go_on(run, 3)
                self.compare(run)
            self.client.delete_run(run.name)
        if self.runs:
            self.client.delete_dataset(self.dataset_name)


def await_batch(member: Member) -> steelyard.Batch:
    """The batch that the server has sent. Before it arrives, a trainer that owes the report which another's word made
    needless is told that it waits for itself."""
    deadline = time.monotonic() + WAIT / 4
    while True:
        try:
            return member.session.next(WAIT / 4)
        except steelyard.StalenessError:
            if not member.owed or time.monotonic() > deadline:
                raise
        time.sleep(0.002)


def connected(run: Driven) -> int:
    return run.handle.stats().connected_ranks


def weights_without_losses(state: Any, step: int) -> list[float]:
    served = state.steps[step]
    by_draw: list[float] = state.weights_by_draw(step)
    if state.rule_of(step)["method"] == "uniform":
        return [weight if known else 0.0 for weight, known in zip(by_draw, served.reported, strict=True)]
    return by_draw


def compare_histories(mine: list[list[tuple[int, float]]], theirs: list[list[tuple[int, float]]]) -> None:
    assert [[step for step, _ in one] for one in mine] == [[step for step, _ in one] for one in theirs]
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal([loss for _, loss in one], [rounded(loss) for _, loss in other])


class Anything(Machine):
    staleness = ("any",)


@pytest.fixture(autouse=True, scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    directory: Path = tmp_path_factory.mktemp("server")
    with ServerProcess(directory, checkpoint_interval_seconds=0.3, log_level="warning") as process:
        Machine.process, Machine.client = process, process.client(timeout=WAIT)
        yield
        Machine.client.close()


def search(examples: int) -> settings:
    return settings(
        max_examples=EXAMPLES or examples,
        stateful_step_count=20,
        derandomize=not EXAMPLES,
        # Shrinking a failure takes minutes.
        phases=tuple(Phase) if EXAMPLES else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def as_test(machine: type[Machine], examples: int) -> Any:
    case = machine.TestCase
    case.settings = search(examples)
    return pytest.mark.timeout(86400 if EXAMPLES else 300)(case)


TestTheServerAgreesWithItsTwinUnderBoundedStaleness = as_test(Machine, 16)
TestTheServerAgreesWithItsTwinUnderAnyStaleness = as_test(Anything, 8)


def test_steps_that_nobody_reports_are_given_up_and_remembered_by_both() -> None:
    machine = Machine()
    values = {
        "batch_size": 3,
        "seed": 4,
        "staleness": 2,
        "on_nonfinite": "skip",
        "history_size": 2,
        "draw": full_draw({"method": "shuffle"}),
        "weigh": {"method": "linupper", "r": 0.5},
    }
    run = machine.create(values, 11, [1.0])
    machine.launch(run, 1, None, [0])
    (member,) = run.members
    for step in range(300):
        batch = machine.take_one(run, member)
        losses = [rounded(i * 0.7 + step % 4) for i in batch.ids]
        if step % 3:
            machine.report_part(run, member, batch, 0, {"loss": losses[: 1 + step % 5 % 3]}, want=False)
    for step in (0, 1, 40, 297):
        machine.report_part(run, member, member.batches[step], 1, {"loss": [2.5, 1.5]}, want=False)
    assert run.tally["late"] == 3
    assert run.twin.state.held == 44
    machine.agrees()
    machine.look_back()


# ---- faults that the machine must find ----


def takes_a_duplicate_for_new(right: Any, state: State, step: int, offset: int, signals: op.Signals) -> str:
    verdict: str = right(state, step, offset, signals)
    return "APPLIED" if verdict == "DUPLICATE" else verdict


def drops_the_last_value(right: Any, state: State, step: int, ids: list[int], signals: op.Signals) -> None:
    right(state, step, ids[:-1], {name: values[:-1] for name, values in signals.items()})


def knows_one_step_less(right: Any, state: State, step: int) -> None:
    right(state, step - 1)


def forgets_the_greatest(right: Any, drawn: Scored, score: float | None) -> None:
    drawn.greatest = score


def leaves_steps_open(right: Any, state: State, start: int) -> None:
    state.advance()


def never_goes_back(right: Any, run: Run, start: int) -> bool:
    return False


SHUFFLE, BY_LOSS, BY_EXTRA = DRAWS[:1], DRAWS[1:4], [{"method": "scored", "score": "last_el2n"}]
FAULTS: list[tuple[type, str, Callable[..., Any], Sequence[dict[str, Any]]]] = [
    (State, "fold_for_draw", knows_one_step_less, BY_LOSS),
    (State, "fold", drops_the_last_value, BY_LOSS),
    (State, "judge", takes_a_duplicate_for_new, SHUFFLE),
    (State, "close_below", leaves_steps_open, SHUFFLE),
    (Scored, "raise_greatest", forgets_the_greatest, BY_EXTRA),
    (Run, "left_a_trace", never_goes_back, DRAWS),
]


@pytest.mark.parametrize(
    ("kind", "name", "fault", "draws"), FAULTS, ids=[fault.__name__ for _, _, fault, _ in FAULTS]
)
def test_the_machine_finds_a_fault_that(
    kind: type,
    name: str,
    fault: Callable[..., Any],
    draws: Sequence[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted in the twin; one of the server would be found as well, since neither is taken for right."""
    right = getattr(kind, name)

    def planted(*arguments: Any) -> Any:
        return fault(right, *arguments)

    monkeypatch.setattr(kind, name, planted)
    monkeypatch.setattr(Machine, "draws", draws)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Machine, settings=search(12))
