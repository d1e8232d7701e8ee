"""Losses that arrive from their device later: what the trainer's thread sees meanwhile, and when it fails."""

import threading
import time

import numpy as np
import pytest
import torch

from steelyard import DeadlineExceeded, ReportRefused, StalenessError
from steelyard.torch.copies import HostCopy
from steelyard.torch.pending import parts_of
from steelyard.torch.reporter import Reporter


class Slow(HostCopy):
    """A copy that arrives when `arrived` is set."""

    def __init__(self, values, arrived):
        super().__init__(torch.tensor(values))
        self._gate = arrived

    @property
    def waits(self):
        return True

    def numpy(self):
        assert self._gate.wait(30)
        return super().numpy()


class Broken(Slow):
    def numpy(self):
        super().numpy()
        raise RuntimeError("device-side assert triggered")


@pytest.fixture
def session(make_run, scored):
    with make_run(draw=scored, staleness=1).join() as session:
        yield session


def send(reporter, batch, copy):
    (part,) = parts_of(batch, 1)
    reporter.send(part, {"loss": copy})


def test_a_report_in_host_memory_is_made_at_once(session):
    reporter = Reporter(session)
    (part,) = parts_of(session.next(), 1)
    reporter.report(part, {"loss": torch.ones(4)})
    session.flush()
    assert threading.active_count() == len(
        [one for one in threading.enumerate() if "reporter" not in one.name]
    )


def test_the_trainers_thread_goes_on_and_a_draw_waits_for_what_is_on_its_way(session):
    reporter, arrived = Reporter(session), threading.Event()
    first, _ = session.next(), session.next()
    with pytest.raises(StalenessError):
        session.next(timeout=1)
    began = time.monotonic()
    send(reporter, first, Slow([1.0, 2.0, 3.0, 4.0], arrived))
    assert time.monotonic() - began < 5, "sending does not wait for the copy"
    threading.Timer(0.2, arrived.set).start()
    assert session.next().step == 2, "waits for the report, which is on its way"
    reporter.drain(10)
    reporter.check()


def test_a_drain_waits_for_every_copy_and_explains_where_one_does_not_come(session):
    reporter, arrived = Reporter(session), threading.Event()
    send(reporter, session.next(), Slow([1.0] * 4, arrived))
    with pytest.raises(DeadlineExceeded, match=r"the losses of 1 batches did not arrive .* within 0.1 s"):
        reporter.drain(0.1)
    arrived.set()
    reporter.drain(10)
    session.flush()
    assert session.unacknowledged == 0


def test_a_failure_ends_the_session_so_that_nobody_waits_and_is_what_is_raised(session):
    reporter, arrived = Reporter(session), threading.Event()
    first, second = session.next(), session.next()
    send(reporter, first, Broken([1.0] * 4, arrived))
    send(reporter, second, Slow([1.0] * 4, arrived))
    arrived.set()
    reporter.drain(10)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="device-side assert"):
            reporter.check()


def test_a_refusal_is_kept_for_the_next_call_and_the_reports_after_it_are_made(make_run):
    run = make_run(on_nonfinite="reject")
    arrived = threading.Event()
    arrived.set()
    with run.join() as session:
        reporter = Reporter(session)
        batches = [session.next() for _ in range(3)]
        for batch, value in zip(batches, (float("nan"), 2.0, 3.0), strict=True):
            send(reporter, batch, Slow([1.0, value, 1.0, 1.0], arrived))
            reporter.drain(10)
            deadline = time.monotonic() + 10
            while session.unacknowledged:  # so that the refusal is there before the next report
                assert time.monotonic() < deadline
                time.sleep(0.005)
        with pytest.raises(ReportRefused, match="step 0"):
            reporter.check()
        reporter.check()
    assert run.stats().reported_losses == 8


def test_a_stopped_reporter_ends_its_thread(session):
    reporter, arrived = Reporter(session), threading.Event()
    arrived.set()
    send(reporter, session.next(), Slow([1.0] * 4, arrived))
    thread = reporter._thread
    assert thread is not None
    reporter.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_a_copy_is_of_the_moment_when_it_was_made():
    values = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    copy = HostCopy(values)
    with torch.no_grad():
        values.zero_()
    assert not copy.waits
    assert copy.numpy().dtype == np.float32
    assert copy.numpy().tolist() == [1.0, 2.0]
