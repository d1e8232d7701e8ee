"""Events ⇄ the payload of a journal record. Pure.

One pair of functions an event, in the order of core/events.py. What is decoded equals what was encoded, bit
for bit (NaN payloads included), with two liberties: ids come back as int64 whatever integers they were, and
mappings come back as dicts with sorted signals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from steelyard_server.core.events import (
    AttemptBegan,
    BatchDrawn,
    Bookmarked,
    ColumnSet,
    DatasetGrown,
    Event,
    Float32s,
    IdsRetired,
    LossesReported,
    PolicyChanged,
    RunCreated,
    SignalsObserved,
    StepClosed,
)
from steelyard_server.disk.v1 import arrays_pb2, events_pb2

from .arrays import fill, from_json, narrowed, pack, pack_ids, to_json, unpack, unpack_ids


def encode(event: Event) -> bytes:
    """ValueError where a value cannot be stored: a negative id or step, NaN in a policy, an odd dtype."""
    message = events_pb2.Event()
    match event:
        # The two of every step are filled in where they are: to make them apart and copy them in costs twice that.
        case BatchDrawn():
            _fill_batch_drawn(message.batch_drawn, event)
        case LossesReported():
            _fill_losses_reported(message.losses_reported, event)
        case _:
            field, put, _ = _KINDS[type(event)]
            getattr(message, field).CopyFrom(put(event))
    return message.SerializeToString(deterministic=True)


def decode(payload: bytes) -> Event:
    """ValueError when the payload is not one whole event that this program knows."""
    try:
        message = events_pb2.Event.FromString(payload)
    except DecodeError as error:
        raise ValueError(f"expected an event, found {len(payload)} bytes that are none: {error}") from error
    field = message.WhichOneof("kind")
    if field is None:
        raise ValueError("expected an event of a known kind; a newer program may have written it")
    return _FIELDS[field](getattr(message, field))


def _put_run_created(event: RunCreated) -> events_pb2.RunCreated:
    return events_pb2.RunCreated(spec_json=to_json(event.spec), dataset_size=event.dataset_size)


def _get_run_created(message: events_pb2.RunCreated) -> RunCreated:
    return RunCreated(from_json(message.spec_json), message.dataset_size)


def _put_policy_changed(event: PolicyChanged) -> events_pb2.PolicyChanged:
    return events_pb2.PolicyChanged(policy_json=to_json(event.policy))


def _get_policy_changed(message: events_pb2.PolicyChanged) -> PolicyChanged:
    return PolicyChanged(from_json(message.policy_json))


def _put_column_set(event: ColumnSet) -> events_pb2.ColumnSet:
    return events_pb2.ColumnSet(name=event.name, ids=pack_ids(event.ids), values=_pack_float32(event.values))


def _get_column_set(message: events_pb2.ColumnSet) -> ColumnSet:
    return ColumnSet(message.name, unpack_ids(message.ids), _unpack_float32(message.values))


def _put_dataset_grown(event: DatasetGrown) -> events_pb2.DatasetGrown:
    return events_pb2.DatasetGrown(size=event.size)


def _get_dataset_grown(message: events_pb2.DatasetGrown) -> DatasetGrown:
    return DatasetGrown(message.size)


def _put_ids_retired(event: IdsRetired) -> events_pb2.IdsRetired:
    return events_pb2.IdsRetired(ids=pack_ids(event.ids))


def _get_ids_retired(message: events_pb2.IdsRetired) -> IdsRetired:
    return IdsRetired(unpack_ids(message.ids))


def _fill_batch_drawn(message: events_pb2.BatchDrawn, event: BatchDrawn) -> None:
    message.step = event.step
    fill(message.ids, narrowed(event.ids))
    if event.probability is not None:
        fill(message.probability, event.probability.astype(np.float64, copy=False))
    message.uniform_probability = event.uniform_probability
    message.state_version = event.state_version
    message.digest = event.digest
    message.draw_state_json = to_json(event.draw_state)
    if event.weight is not None:
        fill(message.weight, event.weight.astype(np.float32, copy=False))


def _get_batch_drawn(message: events_pb2.BatchDrawn) -> BatchDrawn:
    return BatchDrawn(
        step=message.step,
        ids=unpack_ids(message.ids),
        probability=unpack(message.probability) if message.HasField("probability") else None,
        uniform_probability=message.uniform_probability,
        state_version=message.state_version,
        digest=message.digest,
        draw_state=from_json(message.draw_state_json),
        weight=_unpack_float32(message.weight) if message.HasField("weight") else None,
    )


def _fill_losses_reported(message: events_pb2.LossesReported, event: LossesReported) -> None:
    # A message of nothing but zeros is there all the same.
    message.SetInParent()
    message.step = event.step
    message.offset = event.offset
    for name in sorted(event.signals):
        signal = message.signals.add(name=name)
        fill(signal.values, event.signals[name].astype(np.float32, copy=False))


def _get_losses_reported(message: events_pb2.LossesReported) -> LossesReported:
    return LossesReported(message.step, message.offset, _unpack_signals(message.signals))


def _put_signals_observed(event: SignalsObserved) -> events_pb2.SignalsObserved:
    return events_pb2.SignalsObserved(
        step=event.step, ids=pack_ids(event.ids), signals=_pack_signals(event.signals)
    )


def _get_signals_observed(message: events_pb2.SignalsObserved) -> SignalsObserved:
    step = message.step if message.HasField("step") else None
    return SignalsObserved(step, unpack_ids(message.ids), _unpack_signals(message.signals))


def _put_step_closed(event: StepClosed) -> events_pb2.StepClosed:
    return events_pb2.StepClosed(step=event.step, reason=event.reason)


def _get_step_closed(message: events_pb2.StepClosed) -> StepClosed:
    return StepClosed(message.step, message.reason)


def _put_attempt_began(event: AttemptBegan) -> events_pb2.AttemptBegan:
    return events_pb2.AttemptBegan(
        token=event.token, world_size=event.world_size, start_step=event.start_step
    )


def _get_attempt_began(message: events_pb2.AttemptBegan) -> AttemptBegan:
    return AttemptBegan(message.token, message.world_size, message.start_step)


def _put_bookmarked(event: Bookmarked) -> events_pb2.Bookmarked:
    return events_pb2.Bookmarked(name=event.name, step=event.step)


def _get_bookmarked(message: events_pb2.Bookmarked) -> Bookmarked:
    return Bookmarked(message.name, message.step if message.HasField("step") else None)


def _pack_float32(values: Float32s) -> arrays_pb2.Array:
    return pack(values.astype(np.float32, copy=False))


def _unpack_float32(message: arrays_pb2.Array) -> Float32s:
    values = unpack(message)
    if values.dtype != np.float32:
        raise ValueError(f"expected float32 values, found {values.dtype}")
    return values


def _pack_signals(signals: Mapping[str, Float32s]) -> list[arrays_pb2.Signal]:
    return [arrays_pb2.Signal(name=name, values=_pack_float32(signals[name])) for name in sorted(signals)]


def _unpack_signals(messages: Iterable[arrays_pb2.Signal]) -> dict[str, Float32s]:
    return {message.name: _unpack_float32(message.values) for message in messages}


# Event type → (field of the oneof, to the message, from the message), but for the two that `encode` fills in.
_KINDS: dict[type[Any], tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    RunCreated: ("run_created", _put_run_created, _get_run_created),
    PolicyChanged: ("policy_changed", _put_policy_changed, _get_policy_changed),
    ColumnSet: ("column_set", _put_column_set, _get_column_set),
    DatasetGrown: ("dataset_grown", _put_dataset_grown, _get_dataset_grown),
    IdsRetired: ("ids_retired", _put_ids_retired, _get_ids_retired),
    SignalsObserved: ("signals_observed", _put_signals_observed, _get_signals_observed),
    StepClosed: ("step_closed", _put_step_closed, _get_step_closed),
    AttemptBegan: ("attempt_began", _put_attempt_began, _get_attempt_began),
    Bookmarked: ("bookmarked", _put_bookmarked, _get_bookmarked),
}
_FIELDS: dict[str, Callable[[Any], Event]] = {
    **{field: get for field, _, get in _KINDS.values()},
    "batch_drawn": _get_batch_drawn,
    "losses_reported": _get_losses_reported,
}
