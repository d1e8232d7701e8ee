"""What a session and its server owe each other, against a plain model and by example."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.batch import Batch
from steelyard.errors import Internal, ReportRefused, SessionClosed
from steelyard.ledger import Answer, Ledger, Owed
from steelyard.v1 import trainer_pb2

SLICE = 8


def batch(step, length=SLICE):
    return Batch(
        step=step,
        ids=np.arange(length),
        probability=np.full(length, 0.1),
        weight=np.ones(length, np.float32),
        state_version=0,
        offset=16,
        batch_size=64,
        digest=step,
        rank=2,
        world_size=8,
    )


def report(step, first=0, count=SLICE, *, answer=None, size=100):
    message = trainer_pb2.TrainerMessage(report=trainer_pb2.Report(step=step, offset=16 + first))
    return Owed(message, step, 16 + first, count, size, (16, SLICE), answer)


def handed_out(steps, prefetch=4):
    """A ledger that has handed out steps 0..steps-1."""
    ledger = Ledger()
    ledger.begin(0, prefetch, 0)
    for step in range(steps):
        ledger.receive(batch(step))
        ledger.take()
        ledger.grant()
    ledger.check()
    return ledger


@given(st.integers(1, 20), st.lists(st.sampled_from("rtgc"), max_size=200))
def test_the_credit_granted_never_exceeds_the_room_and_a_waiting_trainer_always_has_some(prefetch, moves):
    ledger = Ledger(prefetch=1)
    joined = ledger.credit_to_join()
    server = joined + ledger.begin(5, prefetch, joined)
    sent = 5
    for move in moves:
        if move == "r" and server:
            ledger.receive(batch(sent))
            sent, server = sent + 1, server - 1
        elif move == "t":
            ledger.take()
        elif move == "g":
            server += ledger.grant()
        elif move == "c":  # the connection breaks: what was granted to it is void
            joined = ledger.credit_to_join()
            server = joined + ledger.resume(joined)
            sent = ledger.expected_step
        ledger.check()
        assert len(ledger.buffered) + server <= prefetch
    while ledger.take() is not None:
        server += ledger.grant()
    assert server > 0


def test_batches_are_handed_out_in_step_order_from_the_first_on():
    ledger = Ledger()
    ledger.begin(7, 3, 3)
    for step in (7, 8, 9):
        ledger.receive(batch(step))
    taken = [ledger.take() for _ in range(4)]
    assert [one and one.step for one in taken] == [7, 8, 9, None]
    assert ledger.next_step == ledger.expected_step == 10


@pytest.mark.parametrize("step", [6, 9])
def test_a_gap_in_the_steps_is_an_error_that_names_both_and_changes_nothing(step):
    ledger = Ledger()
    ledger.begin(7, 3, 3)
    ledger.receive(batch(7))
    with pytest.raises(Internal, match=f"step 8 next, the server sent step {step}"):
        ledger.receive(batch(step))
    ledger.check()
    assert ledger.expected_step == 8


def test_a_batch_without_credit_is_an_error():
    ledger = Ledger()
    ledger.begin(0, 1, 1)
    ledger.receive(batch(0))
    with pytest.raises(Internal, match="without credit"):
        ledger.receive(batch(1))


def test_a_report_is_owed_until_it_is_acknowledged():
    ledger = handed_out(2)
    ledger.submit(report(0))
    ledger.submit(report(1))
    assert (ledger.unacknowledged, ledger.owed_bytes) == (2, 200)
    ledger.acknowledge(1, 16, SLICE, late=False)
    assert ledger.is_acknowledged(1)
    assert not ledger.is_acknowledged(0)
    assert [message.report.step for message in ledger.to_send_again()] == [0]
    ledger.check()


def test_an_answer_to_a_report_that_was_not_made_is_an_error():
    ledger = handed_out(1)
    ledger.submit(report(0, 0, 4))
    for place in [(1, 16, 4), (0, 20, 4), (0, 16, 8)]:
        with pytest.raises(Internal, match="were not reported"):
            ledger.acknowledge(*place, late=False)
    ledger.acknowledge(0, 16, 4, late=False)
    with pytest.raises(Internal):
        ledger.acknowledge(0, 16, 4, late=False)


def test_the_same_report_made_twice_is_owed_twice():
    ledger = handed_out(1)
    ledger.submit(report(0))
    ledger.submit(report(0))
    ledger.acknowledge(0, 16, SLICE, late=False)
    assert ledger.unacknowledged == 1
    ledger.acknowledge(0, 16, SLICE, late=False)
    assert ledger.unacknowledged == 0


def test_what_is_owed_is_bounded_by_count_and_by_bytes_and_one_report_always_fits():
    ledger = handed_out(3)
    ledger.max_reports, ledger.max_bytes = 2, 1000
    assert ledger.has_room(10_000)
    ledger.submit(report(0, size=600))
    assert ledger.has_room(400)
    assert not ledger.has_room(401)
    ledger.submit(report(1, size=100))
    assert not ledger.has_room(1)


@pytest.mark.parametrize("first", ["weights", "acknowledgement"])
def test_a_report_that_asked_for_weights_is_owed_until_both_came_in_either_order(first):
    ledger = handed_out(1)
    answer = Answer(0, SLICE)
    ledger.submit(report(0, answer=answer))
    weights = np.full(SLICE, 2, np.float32)
    if first == "weights":
        ledger.weigh(0, 16, weights)
        assert ledger.unacknowledged == 1
        ledger.acknowledge(0, 16, SLICE, late=False)
    else:
        ledger.acknowledge(0, 16, SLICE, late=False)
        # It is durable, but its weights would be lost with the connection: it is asked again.
        assert len(list(ledger.to_send_again())) == 1
        ledger.acknowledge(0, 16, SLICE, late=False)
        ledger.weigh(0, 16, weights)
    assert answer.weights is weights
    assert (ledger.unacknowledged, ledger.owed_bytes) == (0, 0)
    ledger.check()


def test_weights_that_come_a_second_time_change_nothing():
    ledger = handed_out(1)
    answer = Answer(0, SLICE)
    ledger.submit(report(0, answer=answer))
    ledger.weigh(0, 16, np.ones(SLICE, np.float32))
    ledger.weigh(0, 16, np.zeros(SLICE, np.float32))
    np.testing.assert_array_equal(answer.weights, np.ones(SLICE))


def test_a_late_report_weighs_nothing_and_is_counted():
    ledger = handed_out(1)
    answer = Answer(0, SLICE)
    ledger.submit(report(0, answer=answer))
    ledger.acknowledge(0, 16, SLICE, late=True)
    np.testing.assert_array_equal(answer.weights, np.zeros(SLICE))
    assert ledger.late_reports == 1
    assert ledger.owed_bytes == 0


def test_a_refusal_reaches_the_one_who_waits_for_weights_and_otherwise_says_that_nobody_does():
    ledger = handed_out(2)
    answer = Answer(0, SLICE)
    ledger.submit(report(0, answer=answer))
    ledger.submit(report(1))
    error = ReportRefused("no", code="INVALID_ARGUMENT")
    assert ledger.refuse(0, 16, SLICE, error)
    assert answer.error is error
    assert not ledger.refuse(1, 16, SLICE, error)
    assert ledger.owed_bytes == 0


def test_the_end_fails_every_answer_that_is_still_awaited():
    ledger = handed_out(2)
    there, awaited = Answer(0, SLICE), Answer(1, SLICE)
    ledger.submit(report(0, answer=there))
    ledger.submit(report(1, answer=awaited))
    ledger.weigh(0, 16, np.ones(SLICE, np.float32))
    ledger.fail(SessionClosed("over"))
    assert there.error is None
    assert isinstance(awaited.error, SessionClosed)


@given(st.permutations(range(SLICE)))
def test_a_step_is_reported_when_all_positions_of_its_slice_are(order):
    ledger = handed_out(1)
    for at, first in enumerate(order):
        assert ledger.unreported(0)
        assert ledger.would_complete(0, SLICE, first, 1) == (at == SLICE - 1)
        ledger.submit(report(0, first, 1))
        ledger.check()
    assert not ledger.unreported(0)


def test_the_step_that_a_draw_needs_is_one_that_this_session_was_served():
    ledger = Ledger()
    ledger.begin(10, 8, 8)
    for step in range(10, 15):
        ledger.receive(batch(step))
        ledger.take()
    assert ledger.needed_step(2) == 12
    assert ledger.needed_step(4) == 10
    assert ledger.needed_step(5) is None  # step 9 was another session's


def test_a_refused_report_leaves_its_positions_unreported_again():
    ledger = handed_out(1)
    ledger.submit(report(0, 0, 4))
    ledger.submit(report(0, 4, 4))
    assert not ledger.unreported(0)
    error = ReportRefused("no", code="INVALID_ARGUMENT")
    ledger.refuse(0, 16, 4, error)
    ledger.refuse(0, 20, 4, error)
    assert ledger.unreported(0)
    ledger.submit(report(0, 0, 4))
    assert ledger.unreported(0)
    ledger.submit(report(0, 4, 4))
    assert not ledger.unreported(0)


def test_a_report_refused_because_another_was_applied_leaves_the_step_reported():
    ledger = handed_out(1)
    ledger.submit(report(0))
    ledger.refuse(0, 16, SLICE, ReportRefused("other values", code="ALREADY_EXISTS"))
    assert not ledger.unreported(0)


def test_a_step_whose_report_is_announced_does_not_count_as_unreported():
    ledger = handed_out(1)
    ledger.announce(0)
    ledger.announce(99)  # never handed out
    assert not ledger.unreported(0)
    assert ledger.is_open(0)
    ledger.submit(report(0, 0, 4))
    assert not ledger.unreported(0)
    ledger.refuse(0, 16, 4, ReportRefused("no", code="INVALID_ARGUMENT"))
    assert ledger.unreported(0)
    ledger.check()


def test_an_empty_slice_owes_no_report():
    ledger = Ledger()
    ledger.begin(0, 4, 4)
    ledger.receive(batch(0, length=0))
    ledger.take()
    assert not ledger.unreported(0)


def test_a_trainer_that_never_reports_costs_bounded_memory():
    ledger = handed_out(3000)
    assert ledger.unreported_steps == 1024
