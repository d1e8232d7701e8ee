"""The events of a run's journal: what changed it, in order. run.events() gives them.

A run is the fold of its events: the batches of another run that was given the same ones would be the same. Each has
`record`, its number in the journal; what a rewind undid is not in the journal, and its numbers are given out again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from steelyard import wire
from steelyard.answers import answers
from steelyard.errors import (
    Aborted,
    DataLoss,
    DeadlineExceeded,
    HandshakeFailed,
    Internal,
    Unavailable,
)
from steelyard.handshake import NOT_CONNECTED
from steelyard.info import Staleness, mix_of, staleness_of
from steelyard.structs import from_struct
from steelyard.transport import Transport
from steelyard.v1 import arrays_pb2, runs_pb2
from steelyard.v1 import events_pb2 as pb

Ids = npt.NDArray[np.int64]
Signals = Mapping[str, npt.NDArray[np.float32]]
"""float32[n] by name."""


@dataclass(frozen=True, slots=True, eq=False)
class RunSpec:
    """How a run was made."""

    name: str
    dataset: str
    batch_size: int
    seed: int
    staleness: Staleness
    draw: Mapping[str, Any]
    mix: Mapping[str, Any]
    weigh: Mapping[str, Any]
    on_nonfinite: Literal["skip", "reject"]
    report_timeout: float
    """Seconds."""
    history_size: int
    retain_steps: int


@dataclass(frozen=True, slots=True, eq=False)
class RunCreated:
    """The first event of a run. A fork begins with its parent's state at the step that it was forked at."""

    record: int
    spec: RunSpec
    dataset_size: int


@dataclass(frozen=True, slots=True, eq=False)
class PolicyChanged:
    """All parts of the policy, from the next draw on."""

    record: int
    draw: Mapping[str, Any]
    mix: Mapping[str, Any]
    weigh: Mapping[str, Any]
    step: int | None = None
    """That of the next draw: the first one under this policy, unless it is changed again before. None: the server is of
    an earlier day."""


@dataclass(frozen=True, slots=True, eq=False)
class ColumnSet:
    """Values of a column that the policy reads: uploaded ones, or, after a change of policy, those of a derived column,
    folded from the history."""

    record: int
    column: str
    ids: Ids
    """int64[n]."""
    values: npt.NDArray[np.float32]
    """float32[n]."""


@dataclass(frozen=True, slots=True, eq=False)
class DatasetGrown:
    record: int
    size: int
    """Ids 0..size-1 may be drawn from here on."""


@dataclass(frozen=True, slots=True, eq=False)
class IdsRetired:
    record: int
    ids: Ids
    """int64[n]: never drawn again."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchDrawn:
    """What was served at a step, in batch order."""

    record: int
    step: int
    ids: Ids
    """int64[B]."""
    probability: npt.NDArray[np.float64]
    """float64[B], exact: the expected number of copies of the id in the batch, divided by B."""
    uniform_probability: float
    """1 / (number of examples that could be drawn)."""
    state_version: int
    digest: int
    """steelyard.wire.batch_digest(step, ids)."""
    draw_state: Mapping[str, Any]
    """What the drawing method notes about its draw, for a reader's eyes."""
    weight: npt.NDArray[np.float32]
    """float32[B]: what the draw itself gave each, for a weigh rule that reads it; 1 under a draw that gives none."""


@dataclass(frozen=True, slots=True, eq=False)
class LossesReported:
    """Signals of the positions from `offset` on of a step's batch, as one report brought them."""

    record: int
    step: int
    offset: int
    signals: Signals


@dataclass(frozen=True, slots=True, eq=False)
class SignalsObserved:
    """Signals of ids that were not drawn; `step` is None where the next draw was to know them."""

    record: int
    step: int | None
    ids: Ids
    """int64[n]."""
    signals: Signals


@dataclass(frozen=True, slots=True, eq=False)
class StepClosed:
    """Later reports of the step were not taken. Steps whose reports are complete close without an event."""

    record: int
    step: int
    reason: Literal["timeout", "owner", "unknown"]


@dataclass(frozen=True, slots=True, eq=False)
class AttemptBegan:
    """A launch of the training job."""

    record: int
    attempt: str
    """Empty where the owner has rewound the run."""
    world_size: int
    start_step: int


@dataclass(frozen=True, slots=True, eq=False)
class Bookmarked:
    record: int
    bookmark: str
    step: int | None
    """None: the bookmark was deleted."""


Event = (
    RunCreated
    | PolicyChanged
    | ColumnSet
    | DatasetGrown
    | IdsRetired
    | BatchDrawn
    | LossesReported
    | SignalsObserved
    | StepClosed
    | AttemptBegan
    | Bookmarked
)

__all__ = [
    "AttemptBegan",
    "BatchDrawn",
    "Bookmarked",
    "ColumnSet",
    "DatasetGrown",
    "Event",
    "IdsRetired",
    "LossesReported",
    "PolicyChanged",
    "RunCreated",
    "RunSpec",
    "SignalsObserved",
    "StepClosed",
]


# ---- reading a stream of them ----


_ATTEMPTS = 5
"""Of going on, as long as none brings an event."""


def read(transport: Transport, request: pb.StreamEventsRequest, purpose: str) -> Iterator[Event]:
    """The events of one request; closing the iterator cancels its call. A connection that ends in the middle is made
    again, and the reading goes on behind the last event that came.

    DeadlineExceeded where a message takes longer than the transport's timeout; Aborted where the run went back before
    the reading could go on; else the errors of the call, each with what was asked for.
    """
    place = _Place(request)
    attempts = 0
    broke: Unavailable | None = None
    while True:
        before = place.record
        try:
            for event in _events(transport, place.request(), purpose):
                if place.goes_on_with(event, purpose):
                    yield event
            return
        except Unavailable as error:
            attempts = attempts + 1 if place.record == before else 1
            begun = place.record >= 0 or NOT_CONNECTED in str(error) or isinstance(error, HandshakeFailed)
            if not begun or attempts > _ATTEMPTS:
                raise
            broke = error
        except DeadlineExceeded as error:
            if broke is None or place.record != before:
                raise
            raise Unavailable(f"{broke}; it was tried again: {error}") from None
        time.sleep(min(0.1 * 2**attempts, 2.0))


class _Place:
    """How far a reading has come: what it asks for next, and what of the answer it has had already."""

    def __init__(self, request: pb.StreamEventsRequest) -> None:
        self._request = request
        self.record = -1
        self._drawn: BatchDrawn | None = None

    def request(self) -> pb.StreamEventsRequest:
        """From the last draw that came: no request names a record."""
        request = pb.StreamEventsRequest()
        request.CopyFrom(self._request)
        if self._drawn is not None:
            request.from_step = self._drawn.step
        return request

    def goes_on_with(self, event: Event, purpose: str) -> bool:
        """Whether the event is new. Aborted where what came before is not what was read."""
        if event.record > self.record:
            self.record = event.record
            if isinstance(event, BatchDrawn):
                self._drawn = event
            return True
        drawn = self._drawn
        if drawn is not None and event.record == drawn.record:
            same = isinstance(event, BatchDrawn) and (event.step, event.digest) == (drawn.step, drawn.digest)
            if not same:
                raise Aborted(f"{purpose}: the run went back while it was read; ask again")
        return False


def _events(transport: Transport, request: pb.StreamEventsRequest, purpose: str) -> Iterator[Event]:
    """Those of one call: messages put together."""
    parts: list[Event] = []
    try:
        for answer in answers(transport, lambda to: to.events.StreamEvents, request, purpose):
            for message in answer.events:
                event = _unpack(message, purpose)
                if parts and parts[0].record != event.record:
                    yield _joined(parts)
                    parts = []
                parts.append(event)
    except DataLoss:
        # What precedes the damage is whole, and right.
        if parts:
            yield _joined(parts)
        raise
    if parts:
        yield _joined(parts)


# ---- messages to values ----


def _unpack(message: pb.Event, purpose: str) -> Event:
    field = message.WhichOneof("event")
    if field is None:
        raise Internal(
            f"{purpose}: record {message.record} is of a kind that this version of the client does not know"
        )
    try:
        return _KINDS[field](message.record, getattr(message, field))
    except ValueError as error:
        raise Internal(f"{purpose}: record {message.record}: {error}") from error


def _joined(parts: list[Event]) -> Event:
    """One event of its parts: arrays one behind the other, all else as in the first."""
    first = parts[0]
    if len(parts) == 1:
        return first
    changes: dict[str, Any] = {}
    for field in fields(first):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], np.ndarray):
            changes[field.name] = np.concatenate(values)
        elif field.name == "signals":
            changes[field.name] = {name: np.concatenate([one[name] for one in values]) for name in values[0]}
    return replace(first, **changes)


def _run_created(record: int, message: pb.RunCreated) -> RunCreated:
    spec = message.spec
    made = RunSpec(
        name=spec.name,
        dataset=spec.dataset,
        batch_size=spec.batch_size,
        seed=spec.seed,
        staleness=staleness_of(spec),
        draw=from_struct(spec.policy.draw),
        mix=mix_of(spec.policy),
        weigh=from_struct(spec.policy.weigh),
        on_nonfinite="reject" if spec.on_nonfinite == runs_pb2.ON_NONFINITE_REJECT else "skip",
        report_timeout=spec.report_timeout_seconds,
        history_size=spec.history_size,
        retain_steps=spec.retain_steps,
    )
    return RunCreated(record, made, message.dataset_size)


def _policy_changed(record: int, message: pb.PolicyChanged) -> PolicyChanged:
    policy = message.policy
    step = message.step if message.HasField("step") else None
    return PolicyChanged(record, from_struct(policy.draw), mix_of(policy), from_struct(policy.weigh), step)


def _column_set(record: int, message: pb.ColumnSet) -> ColumnSet:
    ids = wire.unpack_ids(message.ids)
    values = wire.unpack(message.values, np.float32, count=len(ids), name="values")
    return ColumnSet(record, message.column, ids, values)


def _dataset_grown(record: int, message: pb.DatasetGrown) -> DatasetGrown:
    return DatasetGrown(record, message.size)


def _ids_retired(record: int, message: pb.IdsRetired) -> IdsRetired:
    return IdsRetired(record, wire.unpack_ids(message.ids))


def _batch_drawn(record: int, message: pb.BatchDrawn) -> BatchDrawn:
    ids = wire.unpack_ids(message.ids)
    probability = np.full(len(ids), message.uniform_probability)
    if message.HasField("probability"):
        probability = wire.unpack(message.probability, np.float64, count=len(ids), name="probability")
    weight = np.ones(len(ids), np.float32)
    if message.HasField("weight"):
        weight = wire.unpack(message.weight, np.float32, count=len(ids), name="weight")
    return BatchDrawn(
        record=record,
        step=message.step,
        ids=ids,
        probability=probability,
        uniform_probability=message.uniform_probability,
        state_version=message.state_version,
        digest=message.digest,
        draw_state=from_struct(message.draw_state),
        weight=weight,
    )


def _losses_reported(record: int, message: pb.LossesReported) -> LossesReported:
    return LossesReported(record, message.step, message.offset, _signals(message.signals, None))


def _signals_observed(record: int, message: pb.SignalsObserved) -> SignalsObserved:
    ids = wire.unpack_ids(message.ids)
    step = message.step if message.HasField("step") else None
    return SignalsObserved(record, step, ids, _signals(message.signals, len(ids)))


def _step_closed(record: int, message: pb.StepClosed) -> StepClosed:
    return StepClosed(record, message.step, _REASONS.get(message.reason, "unknown"))


def _attempt_began(record: int, message: pb.AttemptBegan) -> AttemptBegan:
    return AttemptBegan(record, message.attempt, message.world_size, message.start_step)


def _bookmarked(record: int, message: pb.Bookmarked) -> Bookmarked:
    return Bookmarked(record, message.bookmark, message.step if message.HasField("step") else None)


def _signals(messages: Any, count: int | None) -> Signals:
    def values(message: arrays_pb2.Signal) -> npt.NDArray[np.float32]:
        return wire.unpack(message.values, np.float32, count=count, name=message.name)

    return {message.name: values(message) for message in messages}


_REASONS: Mapping[int, Literal["timeout", "owner"]] = {
    pb.CLOSE_REASON_TIMEOUT: "timeout",
    pb.CLOSE_REASON_OWNER: "owner",
}
_KINDS: Mapping[str, Callable[[int, Any], Event]] = {
    "run_created": _run_created,
    "policy_changed": _policy_changed,
    "column_set": _column_set,
    "dataset_grown": _dataset_grown,
    "ids_retired": _ids_retired,
    "batch_drawn": _batch_drawn,
    "losses_reported": _losses_reported,
    "signals_observed": _signals_observed,
    "step_closed": _step_closed,
    "attempt_began": _attempt_began,
    "bookmarked": _bookmarked,
}
