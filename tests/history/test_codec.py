"""Every event goes to bytes and comes back as it was."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np
import pytest

from steelyard_server.core import events
from steelyard_server.core.events import (
    AttemptBegan,
    BatchDrawn,
    Bookmarked,
    ColumnSet,
    DatasetGrown,
    Event,
    IdsRetired,
    LossesReported,
    PolicyChanged,
    RunCreated,
    SignalsObserved,
    StepClosed,
)
from steelyard_server.disk.v1 import events_pb2
from steelyard_server.history.codec import decode, encode

IDS = np.array([5, 0, 2**31 - 1, 5], np.int64)
NONFINITE = np.array([np.nan, -np.inf, np.inf, -0.0], np.float32)
NONFINITE.view(np.uint32)[0] |= 0x1234  # a NaN payload must survive too

EXAMPLES: list[Event] = [
    RunCreated(
        {"name": "r", "policy": {"draw": {"method": "shuffle"}}, "seed": 2**64 - 1, "x": [1, None]}, 10
    ),
    PolicyChanged({"weigh": {"r": 0.1, "method": "linupper"}}),
    ColumnSet("quality/é", IDS, np.array([1, 2, 3, 4], np.float32)),
    DatasetGrown(2**31 - 1),
    IdsRetired(np.array([], np.int64)),
    BatchDrawn(7, IDS, np.array([0.1, 0.2, 1 / 3, 1e-300]), 0.0, 6, 2**64 - 1, {"epoch": 3}),
    BatchDrawn(2**40, IDS[:1], None, 1 / 3, 0, 0),
    BatchDrawn(8, IDS, None, 1 / 3, 0, 1, {}, np.array([1, 2.5, 0, 1e-38], np.float32)),
    LossesReported(7, 2, {"loss": NONFINITE, "el2n": np.zeros(0, np.float32)}),
    SignalsObserved(0, IDS, {"loss": NONFINITE}),
    StepClosed(9, "timeout"),
    AttemptBegan("token", 8, 12),
    Bookmarked("epoch-3", 0),
    Bookmarked("epoch-3", None),
]


def same(left: object, right: object) -> bool:
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if dataclasses.is_dataclass(left):
        fields = [field.name for field in dataclasses.fields(left)]
        return type(left) is type(right) and all(same(getattr(left, f), getattr(right, f)) for f in fields)
    return left == right


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_bit_for_bit(event: Event) -> None:
    payload = encode(event)
    assert same(decode(payload), event)
    assert encode(decode(payload)) == payload


def test_every_event_there_is_has_an_example_and_a_kind_on_disk() -> None:
    kinds = set(typing.get_args(events.Event))
    assert {type(event) for event in EXAMPLES} == kinds
    assert len(events_pb2.Event.DESCRIPTOR.oneofs_by_name["kind"].fields) == len(kinds)


@pytest.mark.parametrize(("top", "width"), [(255, 1), (256, 2), (65535, 2), (65536, 4), (2**32, 8)])
def test_ids_take_the_smallest_type_that_holds_them(top: int, width: int) -> None:
    message = events_pb2.Event.FromString(encode(IdsRetired(np.array([0, top], np.int64))))
    assert len(message.ids_retired.ids.data) == 2 * width


def test_equal_mappings_give_equal_bytes() -> None:
    assert encode(PolicyChanged({"a": 1, "b": 2})) == encode(PolicyChanged({"b": 2, "a": 1}))
    one, two = np.ones(1, np.float32), np.zeros(1, np.float32)
    assert encode(LossesReported(0, 0, {"a": one, "b": two})) == encode(
        LossesReported(0, 0, {"b": two, "a": one})
    )


@pytest.mark.parametrize(
    "event",
    [IdsRetired(np.array([3, -1], np.int64)), PolicyChanged({"r": float("nan")}), StepClosed(-1, "owner")],
)
def test_what_cannot_be_stored_is_a_value_error(event: Event) -> None:
    with pytest.raises(ValueError):
        encode(event)


@pytest.mark.parametrize("payload", [b"", b"\xff\xff", b"\xfa\x01\x00"])
def test_bytes_that_are_no_known_event_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="expected an event"):
        decode(payload)


def test_a_report_of_nothing_but_zeros_is_an_event() -> None:
    event = LossesReported(0, 0, {})
    assert same(decode(encode(event)), event)


def test_a_weight_of_another_type_is_refused() -> None:
    drawn = BatchDrawn(8, IDS, None, 1 / 3, 0, 1, {}, np.ones(4, np.float32))
    message = events_pb2.Event.FromString(encode(drawn))
    message.batch_drawn.weight.CopyFrom(message.batch_drawn.ids)
    with pytest.raises(ValueError, match="expected float32 values, found uint32"):
        decode(message.SerializeToString())
