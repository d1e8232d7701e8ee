"""No silent hangs: every wait of a trainer ends, when it was told to, with an error that says what was waited for."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard.testing import ServerProcess

SLACK = 8.0
"""Seconds by which a busy machine may be late; what would hang would do so for minutes."""

SCORED = {"method": "scored", "score": "last_loss", "floor": 0.1}
LINUPPER = {"method": "linupper", "r": 0.4, "where": "server"}


class Silence:
    """A server that can be made silent, and be heard again."""

    def __init__(self, lab: Any, address: str, silence: Any, resume: Any) -> None:
        self.lab, self.address, self._silence, self._resume = lab, address, silence, resume

    def run(self, **options: Any) -> steelyard.Run:
        return steelyard.connect(self.address, timeout=20.0).run(self.lab.run(**options).name)

    @contextlib.contextmanager
    def falls(self) -> Any:
        self._silence()
        try:
            yield
        finally:
            self._resume()


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture(scope="module")
def lab(process, lab_of):
    with process.client() as client:
        yield lab_of(client)


@pytest.fixture(params=["a server that stands still", "a network that swallows"])
def silent(request, process, lab, network):
    if request.param == "a server that stands still":
        return Silence(lab, process.address, process.pause, process.resume)
    bad = network(process.address)
    return Silence(lab, bad.address, bad.swallow, bad.heal)


@contextlib.contextmanager
def ends(seconds, message, error=steelyard.DeadlineExceeded):
    """What is within raises `error` with `message` after `seconds`, not before and not much later."""
    began = time.monotonic()
    with pytest.raises(error) as caught:
        yield
    assert seconds * 0.9 <= time.monotonic() - began < seconds + SLACK
    assert re.search(message, str(caught.value)), str(caught.value)


def test_a_wait_for_a_batch(silent):
    with silent.run().join(prefetch=1, timeout=30.0) as session:
        session.next()
        with silent.falls(), ends(0.6, r"no batch of step \d+ within 0\.6 s"):
            while True:
                session.next(0.6)
        assert session.next().step > 0


def test_a_join(silent):
    """Also one whose connection is taken and not answered; it says which run, which rank and where."""
    run = silent.run()
    with (
        silent.falls(),
        ends(
            0.6,
            rf"joining run '{run.name}', rank 1 of 2 at {silent.address}: no answer within 0\.6 s",
            (steelyard.DeadlineExceeded, steelyard.Unavailable),
        ),
    ):
        run.join(1, 2, attempt="a", timeout=0.6)
    run.join(1, 2, attempt="a", timeout=40.0).leave()


def test_acknowledgements_and_the_end_of_a_session(silent):
    session = silent.run().join(timeout=30.0)
    batch = session.next()
    with silent.falls():
        session.report(batch, np.ones(10))  # waits for nothing
        with ends(0.4, r"after 0\.4 s 1 reports \(\d+ bytes\) are not acknowledged"):
            session.flush(0.4)
        with ends(0.4, r"after 0\.4 s 1 reports \(\d+ bytes\) are not acknowledged"):
            session.leave(0.4)
        for call in (session.flush, session.next, lambda: session.report(batch, np.ones(10))):
            with ends(0.0, "the session was left or closed", steelyard.SessionClosed):
                call()


def test_a_goodbye_that_is_not_answered(silent, caplog):
    """All is durable, so there is nothing to raise; the wait is short, and named in the log."""
    caplog.set_level(logging.WARNING, "steelyard")
    session = silent.run().join(timeout=300.0)
    session.report(session.next(), np.ones(10))
    session.flush()
    began = time.monotonic()
    with silent.falls():
        session.leave()
        assert time.monotonic() - began < 5 + SLACK
        assert any(
            "has not confirmed the end of the session within 5 s" in one.getMessage()
            for one in caplog.records
        )


def test_closing_waits_for_nobody(silent):
    session = silent.run().join(timeout=300.0)
    with silent.falls():
        began = time.monotonic()
        session.close()
        assert time.monotonic() - began < SLACK


def test_weights_of_the_server_and_room_for_a_report(silent):
    session = silent.run(weigh=LINUPPER).join(timeout=30.0)
    session._member.ledger.max_reports = 2
    batches = [session.next() for _ in range(4)]
    with silent.falls():
        with ends(0.5, r"no weights of step 0 within 0\.5 s"):
            session.report_async(batches[0], np.ones(10)).result(0.5)
        session.report_async(batches[1], np.ones(10))
        with ends(
            0.5, r"the report of step 2 was not sent within 0\.5 s, because 2 reports .* not acknowledged"
        ):
            session.report_async(batches[2], np.ones(10), timeout=0.5)
        session.close()


def test_a_call(silent):
    run = silent.run()
    with silent.falls():
        hasty = steelyard.Run(steelyard.connect(silent.address, timeout=0.6), run.name)
        for call in (hasty.stats, lambda: hasty.rewind(0)):
            with ends(0.6, f"no answer from {silent.address} within 0.6 s"):
                call()


def test_a_sampler(silent):
    torch = pytest.importorskip("torch")
    from steelyard.torch import BatchSampler

    sampler = BatchSampler(silent.run(), prefetch=1, timeout=30.0)
    served = iter(sampler)
    next(served)
    sampler.report(torch.ones(10))
    sampler.state_dict()
    next(served)
    sampler._timeout = 1.0
    with silent.falls():
        sampler.report(torch.ones(10))
        with ends(1.0, "1 reports .* are not acknowledged"):
            sampler.state_dict()
        with ends(1.0, "1 reports .* are not acknowledged"):
            sampler.close()


def test_a_server_that_accepts_and_says_nothing_ever():
    """As a port of another program, or of a server that hangs before it serves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with ends(1.0, "no answer", (steelyard.DeadlineExceeded, steelyard.Unavailable)):
            steelyard.connect(address, timeout=1.0).run("r")
        run = steelyard.Run(steelyard.connect(address), "r")
        with ends(
            1.0, f"joining run 'r', rank 0 of 1 at {address}: no answer within 1 s", steelyard.SteelyardError
        ):
            run.join(timeout=1.0)


def test_ranks_that_never_come_are_named_as_what_is_waited_for(lab):
    """Nothing is wrong with the server: a rank of two waits for the other's reports."""
    with lab.run(weigh=LINUPPER).join(0, 2, attempt="a", timeout=30.0) as session:
        batch = session.next()
        with ends(0.5, "They need the losses of all 2 ranks; this one has reported 5 of them"):
            session.report(batch, np.ones(5), timeout=0.5)
    with lab.run(draw=SCORED, staleness=0).join(0, 2, attempt="a", timeout=30.0) as session:
        session.report(session.next(), np.ones(5))
        session.flush()
        with ends(0.5, "needs those of step 0 from all 2 ranks; this rank's is acknowledged"):
            session.next(0.5)


def test_an_interpreter_ends_beside_a_silent_server(process, lab, programs):
    silent = Silence(lab, process.address, process.pause, process.resume)
    run = silent.run()
    with subprocess.Popen(
        [sys.executable, str(programs / "exit_beside_silence.py"), silent.address, run.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "joined\n"
        with silent.falls():
            trainer.communicate("end\n", timeout=30)
            assert trainer.returncode == 0
