"""Events of a journal to messages of the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from steelyard import wire
from steelyard.v1 import arrays_pb2
from steelyard.v1 import events_pb2 as pb
from steelyard_server.core.events import (
    AttemptBegan,
    BatchDrawn,
    Bookmarked,
    ColumnSet,
    DatasetGrown,
    Event,
    Float32s,
    Ids,
    IdsRetired,
    LossesReported,
    PolicyChanged,
    RunCreated,
    SignalsObserved,
    StepClosed,
)
from steelyard_server.runs.spec import parse_spec
from steelyard_server.service import convert

_REASONS = {"timeout": pb.CLOSE_REASON_TIMEOUT, "owner": pb.CLOSE_REASON_OWNER}


def responses(
    rows: Iterable[tuple[int, Event, int | None]], limit: int = convert.RESPONSE_BYTES
) -> Iterator[pb.StreamEventsResponse]:
    """The events in as few responses of about `limit` bytes as hold them; none where there are no events. With each
    comes the next step to be drawn behind it, where that is known."""
    response, size = pb.StreamEventsResponse(), 0
    for record, event, next_step in rows:
        for part in parts(record, event, limit):
            if isinstance(event, PolicyChanged) and next_step is not None:
                part.policy_changed.step = next_step
            length = part.ByteSize()
            if size and size + length > limit:
                yield response
                response, size = pb.StreamEventsResponse(), 0
            response.events.append(part)
            size += length
    if size:
        yield response


def parts(record: int, event: Event, limit: int) -> Iterator[pb.Event]:
    """The event as one message, or as several of about `limit` bytes where it has more values than one holds."""
    field, count_of, fill = _KINDS[type(event)]
    total, each = count_of(event)
    step = max(1, limit // each)
    for first in range(0, max(total, 1), step):
        part = pb.Event(record=record)
        target = getattr(part, field)
        target.SetInParent()
        fill(target, event, slice(first, first + step))
        yield part


# ---- how many values an event has, and bytes each takes; 8 bytes an id are the most ----


def _one(event: Event) -> tuple[int, int]:
    return 1, 1


def _ids_of(event: IdsRetired | ColumnSet) -> tuple[int, int]:
    return len(event.ids), 12


def _drawn_of(event: BatchDrawn) -> tuple[int, int]:
    return len(event.ids), 20


def _signals_of(event: LossesReported | SignalsObserved) -> tuple[int, int]:
    return len(next(iter(event.signals.values()), ())), 8 + 4 * len(event.signals)


# ---- one function an event, in the order of the proto: fills `to` with the values in `cut` ----


def _run_created(to: pb.RunCreated, event: RunCreated, cut: slice) -> None:
    to.spec.CopyFrom(convert.spec(parse_spec(event.spec)))
    to.dataset_size = event.dataset_size


def _policy_changed(to: pb.PolicyChanged, event: PolicyChanged, cut: slice) -> None:
    to.policy.CopyFrom(convert.policy(event.policy))


def _column_set(to: pb.ColumnSet, event: ColumnSet, cut: slice) -> None:
    to.column = event.name
    to.ids.CopyFrom(_ids(event.ids[cut]))
    to.values.CopyFrom(wire.pack(event.values[cut], np.float32))


def _dataset_grown(to: pb.DatasetGrown, event: DatasetGrown, cut: slice) -> None:
    to.size = event.size


def _ids_retired(to: pb.IdsRetired, event: IdsRetired, cut: slice) -> None:
    to.ids.CopyFrom(_ids(event.ids[cut]))


def _batch_drawn(to: pb.BatchDrawn, event: BatchDrawn, cut: slice) -> None:
    to.step = event.step
    to.ids.CopyFrom(_ids(event.ids[cut]))
    if event.probability is not None:
        to.probability.CopyFrom(wire.pack(event.probability[cut], np.float64))
    to.uniform_probability = event.uniform_probability
    to.state_version = event.state_version
    to.digest = event.digest
    to.draw_state.CopyFrom(convert.struct(event.draw_state))
    if event.weight is not None:
        to.weight.CopyFrom(wire.pack(event.weight[cut], np.float32))


def _losses_reported(to: pb.LossesReported, event: LossesReported, cut: slice) -> None:
    to.step = event.step
    to.offset = event.offset + cut.start
    to.signals.extend(_signals(event.signals, cut))


def _signals_observed(to: pb.SignalsObserved, event: SignalsObserved, cut: slice) -> None:
    if event.step is not None:
        to.step = event.step
    to.ids.CopyFrom(_ids(event.ids[cut]))
    to.signals.extend(_signals(event.signals, cut))


def _step_closed(to: pb.StepClosed, event: StepClosed, cut: slice) -> None:
    to.step = event.step
    to.reason = _REASONS.get(event.reason, pb.CLOSE_REASON_UNSPECIFIED)


def _attempt_began(to: pb.AttemptBegan, event: AttemptBegan, cut: slice) -> None:
    to.attempt = event.token
    to.world_size = event.world_size
    to.start_step = event.start_step


def _bookmarked(to: pb.Bookmarked, event: Bookmarked, cut: slice) -> None:
    to.bookmark = event.name
    if event.step is not None:
        to.step = event.step


def _ids(ids: Ids) -> arrays_pb2.Array:
    return wire.pack_ids(ids, int(ids.max()) + 1 if len(ids) else 0)


def _signals(signals: Mapping[str, Float32s], cut: slice) -> Iterator[arrays_pb2.Signal]:
    for name in sorted(signals):
        yield arrays_pb2.Signal(name=name, values=wire.pack(signals[name][cut], np.float32))


# Event type → (field of the oneof, its values and their bytes, to the message).
_KINDS: dict[type[Any], tuple[str, Callable[[Any], tuple[int, int]], Callable[[Any, Any, slice], None]]] = {
    RunCreated: ("run_created", _one, _run_created),
    PolicyChanged: ("policy_changed", _one, _policy_changed),
    ColumnSet: ("column_set", _ids_of, _column_set),
    DatasetGrown: ("dataset_grown", _one, _dataset_grown),
    IdsRetired: ("ids_retired", _ids_of, _ids_retired),
    BatchDrawn: ("batch_drawn", _drawn_of, _batch_drawn),
    LossesReported: ("losses_reported", _signals_of, _losses_reported),
    SignalsObserved: ("signals_observed", _signals_of, _signals_observed),
    StepClosed: ("step_closed", _one, _step_closed),
    AttemptBegan: ("attempt_began", _one, _attempt_began),
    Bookmarked: ("bookmarked", _one, _bookmarked),
}
