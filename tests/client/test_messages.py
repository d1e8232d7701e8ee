"""The messages of a trainer's stream as values, and what of them is refused."""

import queue

import numpy as np
import pytest

from steelyard import wire
from steelyard.errors import InvalidArgument, MismatchedLosses
from steelyard.messages import losses_that_fit, report_parts, unpack_batch
from steelyard.stream import _REQUEST_BYTES, _drain
from steelyard.v1 import trainer_pb2

IDS = np.array([5, 3, 9, 1, 7])


def batch_message(**changes):
    values = {
        "step": 4,
        "offset": 0,
        "batch_size": 5,
        "ids": wire.pack_ids(IDS, 10),
        "uniform_probability": 0.1,
        "state_version": 2,
        "digest": wire.batch_digest(4, IDS),
    }
    return trainer_pb2.Batch(**{**values, **changes})


def test_what_a_batch_leaves_out_is_filled_in():
    batch = unpack_batch(batch_message(), 0, 1)
    assert batch.ids.tolist() == IDS.tolist()
    assert batch.probability.tolist() == [0.1] * 5
    assert batch.weight.tolist() == [1] * 5
    assert (batch.step, batch.state_version, batch.offset, batch.batch_size) == (4, 2, 0, 5)


def test_what_a_batch_states_is_taken():
    message = batch_message(
        probability=wire.pack(np.arange(5) / 10, np.float64), weight=wire.pack(np.arange(5), np.float32)
    )
    batch = unpack_batch(message, 0, 1)
    assert batch.probability.tolist() == [0, 0.1, 0.2, 0.3, 0.4]
    assert batch.weight.tolist() == [0, 1, 2, 3, 4]


def test_a_rank_takes_its_slice_only():
    part = batch_message(offset=3, ids=wire.pack_ids(IDS[3:], 10))
    assert unpack_batch(part, 1, 2).ids.tolist() == [1, 7]
    with pytest.raises(ValueError, match="expected the slice from 0, got one from 3"):
        unpack_batch(part, 0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": wire.pack_ids(IDS[:4], 10)}, "ids: expected 5 values, got 4"),
        ({"ids": wire.pack_ids(IDS[::-1], 10)}, "the ids do not have the digest"),
        ({"step": 5}, "the ids do not have the digest"),
        ({"probability": wire.pack(np.ones(5, np.float32))}, "probability: expected float64, got float32"),
        ({"weight": wire.pack(np.ones(4, np.float32))}, "weight: expected 5 values, got 4"),
    ],
)
def test_a_damaged_batch_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        unpack_batch(batch_message(**changes), 0, 1)


def test_a_report_names_its_batch_and_its_place_in_it():
    batch = unpack_batch(batch_message(offset=3, ids=wire.pack_ids(IDS[3:], 10)), 1, 2)
    losses = losses_that_fit(batch, [0.5], 1)
    message = trainer_pb2.TrainerMessage()
    report_parts(batch, losses, signals={"correct": [1]}, offset=1, want_weights=True).fill(message)
    report = message.report
    assert (report.step, report.offset, report.digest, report.want_weights) == (4, 4, batch.digest, True)
    assert [(one.name, wire.unpack(one.values).tolist()) for one in report.signals] == [
        ("loss", [0.5]),
        ("correct", [1.0]),
    ]


def test_signals_that_do_not_fit_the_losses_are_refused():
    batch = unpack_batch(batch_message(), 0, 1)
    losses = losses_that_fit(batch, np.ones(5), None)
    with pytest.raises(MismatchedLosses, match="signal 'correct': expected 5 values"):
        report_parts(batch, losses, signals={"correct": [1]}, offset=0, want_weights=False)
    with pytest.raises(InvalidArgument, match="expected another name"):
        report_parts(batch, losses, signals={"loss": losses}, offset=0, want_weights=False)


@pytest.mark.parametrize("name", ["\ud800", 5, b"margin", ("margin",), "", 65 * "m"])
def test_a_signal_whose_name_a_message_cannot_hold_is_refused_before_it_is_sent(name):
    batch = unpack_batch(batch_message(), 0, 1)
    losses = losses_that_fit(batch, np.ones(5), None)
    with pytest.raises(InvalidArgument, match="signals: expected names"):
        report_parts(batch, losses, signals={name: losses}, offset=0, want_weights=False)


def test_messages_that_have_gathered_travel_together_in_order_and_below_the_size_limit():
    outbox: queue.SimpleQueue = queue.SimpleQueue()
    sizes = [10, 20, _REQUEST_BYTES // 2, _REQUEST_BYTES // 2, 3 * _REQUEST_BYTES, 10]
    for step, size in enumerate(sizes):
        signal = {"name": "loss", "values": {"data": bytes(size)}}
        outbox.put(trainer_pb2.TrainerMessage(report={"step": step, "signals": [signal]}))
    outbox.put(None)
    requests = [[one.report.step for one in request.messages] for request in _drain(outbox)]
    assert requests == [[0, 1, 2], [3], [4], [5]]
