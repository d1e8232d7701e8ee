"""Events as the client reads them off the wire: parts joined, and what is not understood refused."""

import contextlib
import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard import events, wire
from steelyard.v1 import arrays_pb2
from steelyard.v1 import events_pb2 as pb


class Call:
    """A call that answers with `responses`, which a server of today would not all make."""

    def __init__(self, responses):
        self._answers = list(responses)
        self.cancelled = False

    def __call__(self, request, **options):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if not self._answers:
            raise StopIteration
        return self._answers.pop(0)

    def cancel(self):
        self.cancelled = True


def transport_of(call) -> Any:
    """A transport to a server of tomorrow, which answers by `call`."""

    @contextlib.contextmanager
    def stubs(purpose):
        yield SimpleNamespace(events=SimpleNamespace(StreamEvents=call))

    return SimpleNamespace(stubs=stubs, address="a:1", timeout=5, credentials=None, secure=False)


def read(*messages, size=1):
    """The events of messages that come `size` at a time."""
    groups = [messages[at : at + size] for at in range(0, len(messages), size)]
    call: Any = Call([pb.StreamEventsResponse(events=group) for group in groups])
    seen: list[events.Event] = []
    failure = None
    try:
        seen.extend(
            events.read(transport_of(call), pb.StreamEventsRequest(name="r"), "reading the events of r")
        )
    except steelyard.SteelyardError as came:
        failure = came
    assert call.cancelled
    return seen, failure


def reported(record, offset, values):
    signals = [
        arrays_pb2.Signal(name=name, values=wire.pack(np.array(values) * scale, np.float32))
        for name, scale in (("loss", 1), ("other", -1))
    ]
    return pb.Event(record=record, losses_reported=pb.LossesReported(step=4, offset=offset, signals=signals))


def closed(record, step):
    return pb.Event(record=record, step_closed=pb.StepClosed(step=step, reason=pb.CLOSE_REASON_TIMEOUT))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_parts_of_one_record_are_one_event_however_they_are_sent(size):
    seen, failure = read(
        closed(0, 7),
        reported(1, 2, [1, 2]),
        reported(1, 4, [3]),
        reported(1, 5, [4, 5]),
        closed(2, 8),
        size=size,
    )
    assert failure is None
    first, one, last = seen
    assert [dataclasses.astuple(event) for event in (first, last)] == [(0, 7, "timeout"), (2, 8, "timeout")]
    assert isinstance(one, events.LossesReported)
    assert (one.record, one.step, one.offset) == (1, 4, 2)
    np.testing.assert_array_equal(one.signals["loss"], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(one.signals["other"], [-1, -2, -3, -4, -5])


def test_an_event_of_a_kind_that_came_later_is_named_and_not_skipped():
    seen, failure = read(closed(0, 7), pb.Event(record=1), closed(2, 8))
    assert seen == []
    assert isinstance(failure, steelyard.Internal)
    assert str(failure) == (
        "reading the events of r: record 1 is of a kind that this version of the client does not know"
    )


def test_arrays_that_do_not_fit_are_named_with_their_record():
    bad = pb.ColumnSet(column="c", ids=wire.pack_ids([1, 2], 3), values=wire.pack([1.0], np.float32))
    _, failure = read(pb.Event(record=9, column_set=bad))
    assert isinstance(failure, steelyard.Internal)
    assert str(failure) == "reading the events of r: record 9: values: expected 2 values, got 1"


def test_every_kind_of_the_wire_has_its_event_and_its_fields():
    for field in pb.Event.DESCRIPTOR.oneofs_by_name["event"].fields:
        assert field.message_type is not None
        event = getattr(events, field.message_type.name)
        assert field.name in events._KINDS
        names = {one.name for one in dataclasses.fields(event)} - {"record"}
        wire_names = {one.name for one in field.message_type.fields}
        # A policy is given by its parts.
        assert names == wire_names - {"policy"} | (
            {"draw", "mix", "weigh"} if "policy" in wire_names else set()
        )


def test_the_events_are_there_without_asking_for_their_module():
    assert steelyard.events.BatchDrawn is events.BatchDrawn
    assert set(events.__all__) <= set(dir(events))
