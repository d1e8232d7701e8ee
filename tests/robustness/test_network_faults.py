"""Networks that break, swallow, lose and crawl under a training: it gets the batches of one in peace, and every loss
counts once.

A short round of each; `make faults` plays long ones under load.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import steelyard
from steelyard import wire
from steelyard.testing import ServerProcess
from steelyard.v1 import trainer_pb2
from tests.robustness.network import namespace
from tests.robustness.network.bare import Stream, batches_of, report_of
from tests.robustness.network.process import descriptors, private_bytes
from tests.robustness.network.proxy import Proxy
from tests.robustness.network.training import AHEAD, Course, losses_of

STEPS, BATCH, SIZE = 60, 64, 2000
HOLE_SECONDS = 3.0
KEEPALIVE_SECONDS = 15.0
"""Of the server: its ping, and the wait for the answer."""
MIB = 1 << 20
OPEN_BYTES = 9
"""Of memory that a run needs for a position that was drawn and not reported."""

# One server for all of them: a worker of xdist plays this file in its order.
pytestmark = pytest.mark.xdist_group("network")


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("network")) as process:
        yield process


@pytest.fixture(scope="module")
def course(process: ServerProcess) -> Course:
    return Course.of(process.client(), size=SIZE, batch_size=BATCH, steps=STEPS)


@pytest.fixture
def proxy(process: ServerProcess) -> Iterator[Proxy]:
    with Proxy(process.address) as proxy:
        yield proxy


def settle(process: ServerProcess, base: int, seconds: float = 30.0) -> int:
    """Descriptors of the server, once they are down to `base` again or the time is over."""
    deadline = time.monotonic() + seconds
    while (now := descriptors(process.pid)) > base and time.monotonic() < deadline:
        time.sleep(0.1)
    return now


def test_connections_that_are_reset_go_unnoticed(course, process, proxy, eventually):
    base = descriptors(process.pid)

    def reset(step):
        if step % 10 == 4:
            eventually(lambda: proxy.connections)
            assert proxy.reset()

    course.through(proxy.address, "reset", reset)
    assert proxy.cuts >= STEPS // 10
    assert settle(process, base) <= base


def test_connections_that_are_cut_in_the_middle_of_a_frame_go_unnoticed(course, process, proxy):
    base, lots = descriptors(process.pid), random.Random(5)

    def cut(step):
        if step % 5 == 2:
            # Behind so many bytes more, which is within a frame of a batch or of a report, or of its head.
            proxy.cut_after(
                lots.choice((1, 5, 8, 9, 10, lots.randrange(3 * BATCH), lots.randrange(20 * BATCH)))
            )

    course.through(proxy.address, "cut", cut)
    assert proxy.cuts >= STEPS // 10
    assert settle(process, base) <= base


def test_a_handshake_that_is_cut_at_any_byte_is_made_again(course, process, proxy):
    base = descriptors(process.pid)
    run = course.run("handshake")
    # The preface is 24 bytes, the settings and the headers of the call come behind it.
    for size in range(1, 400, 37):
        proxy.cut_after(size)
        with steelyard.connect(proxy.address) as client:
            assert client.run(run.name).info().next_step == 0
    assert proxy.cuts
    assert settle(process, base) <= base


def test_a_black_hole_is_a_deadline_error_and_then_the_training_goes_on(course, process, proxy):
    base = descriptors(process.pid)
    resumed: list[float] = []

    def heal():
        proxy.heal()
        resumed.append(time.monotonic())

    def hole(step):
        if step == STEPS // 2:
            with steelyard.connect(proxy.address, timeout=1.0) as other:
                other.run("hole")
                proxy.stall()
                with pytest.raises(steelyard.DeadlineExceeded, match="within 1 s"):
                    other.run("hole")
            threading.Timer(HOLE_SECONDS, heal).start()
        elif step == STEPS // 2 + 8:
            # Further than what was fetched ahead.
            assert resumed
            resumed.append(time.monotonic())

    course.through(proxy.address, "hole", hole)
    print(f"a black hole of {HOLE_SECONDS:g} s: a batch came {resumed[1] - resumed[0]:.1f} s after its end")
    assert settle(process, base, 60) <= base


def test_a_slow_link_is_slow_and_right(course, proxy):
    # 1 Mbit a second each way.
    proxy.slow(125_000)
    course.through(proxy.address, "slow", lambda step: None)


def test_a_rank_whose_process_died_is_free_at_once(course, process):
    run = course.run("died")
    trainer = subprocess.Popen(
        [sys.executable, "-c", HOLDER, process.address, "died"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == b"holds\n"
        assert run.stats().connected_ranks == 1
        trainer.send_signal(signal.SIGKILL)
        began = time.monotonic()
    with run.join(attempt="one", timeout=30) as session:
        session.next()
    print(f"a killed process: its rank was taken after {time.monotonic() - began:.2f} s")


HOLDER = """
import sys, steelyard
session = steelyard.connect(sys.argv[1]).run(sys.argv[2]).join(attempt="one")
session.next()
print("holds", flush=True)
sys.stdin.read()
"""


def test_a_rank_whose_machine_died_is_free_within_two_keepalives(course, process, proxy):
    base = descriptors(process.pid)
    run = course.run("gone")
    with Stream(proxy.address) as lost:
        lost.join("gone", attempt="one", session="lost")
        lost.expect("joined")
        lost.expect("batch")
        assert proxy.orphan() == 1
        began = time.monotonic()
    # Nobody told the server: the rank is held.
    assert run.stats().connected_ranks == 1
    with run.join(attempt="one", timeout=60) as session:
        session.next(timeout=60)
        took = time.monotonic() - began
    print(f"a machine that vanished: its rank was taken after {took:.1f} s")
    assert took < 2 * KEEPALIVE_SECONDS
    assert settle(process, base) <= base


def test_a_reader_that_reads_nothing_costs_the_server_little(process):
    size, batch = 1 << 20, 1 << 14
    client = process.client()
    client.create_dataset("wide", size)
    run = client.create_run("unread", dataset="wide", batch_size=batch, staleness=16)
    before = private_bytes(process.pid)
    with Stream(process.address) as stream:
        stream.reading.clear()
        stream.join("unread", credit=256)
        deadline = time.monotonic() + 60
        while run.info().next_step < 256 and time.monotonic() < deadline:
            time.sleep(0.1)
        # What is drawn and not reported the run keeps, whether it was read or not: ids, and which of them are reported.
        grown = private_bytes(process.pid) - before - 256 * batch * OPEN_BYTES
        print(
            f"{run.info().next_step} batches of {batch} unread: {grown / MIB:.0f} MiB beside the open steps"
        )
        others = client.create_run("beside", dataset="wide", batch_size=64)
        with others.join() as session:
            session.report(session.next(), np.ones(64))
        stream.reading.set()
        assert [one.step for one in batches_of(stream, 256)] == list(range(256))
    assert grown <= 64 * MIB


def test_reports_that_come_late_twice_and_in_any_order_make_the_same_run(course, process):
    run, lots = course.run("shuffled"), random.Random(3)
    held: list[trainer_pb2.Report] = []
    digests, sent = [], 0
    with Stream(process.address) as stream:
        stream.join("shuffled", credit=4)
        stream.expect("joined")
        for batch in batches_of(stream, STEPS + AHEAD):
            digests.append(batch.digest)
            if batch.step >= STEPS:
                continue
            losses = losses_of(wire.unpack_ids(batch.ids), batch.step)
            cuts = sorted(lots.sample(range(1, len(losses)), 2))
            parts = zip([0, *cuts], [*cuts, len(losses)], strict=True)
            held += [report_of(batch, losses[first:last], first) for first, last in parts]
            if batch.step % 4 == 3 or batch.step == STEPS - 1:
                # Four steps are out at once, and their reports come back in any order, some of them twice or thrice.
                again = [report for report in held for _ in range(lots.choice((1, 1, 2, 3)))]
                lots.shuffle(again)
                for report in again:
                    stream.send(report=report)
                sent += len(again)
                held.clear()
                stream.send(credit=trainer_pb2.Credit(batches=4))
        stream.send(leave=trainer_pb2.Leave())
        stream.end()
    assert tuple(digests) == course.digests
    course.compare(run)
    assert run.stats().duplicate_reports == sent - 3 * STEPS


needs_namespaces = pytest.mark.skipif(namespace.why_not() is not None, reason=str(namespace.why_not()))


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[namespace.Namespace, str]]:
    """A server behind a cable of its own, and its address."""
    folder = tmp_path_factory.mktemp("away")
    with namespace.Namespace() as net:
        address = f"{net.host}:7077"
        flags = [
            "--data-dir",
            folder / "data",
            "--listen",
            address,
            "--port-file",
            folder / "port",
            "--insecure",
        ]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [*net.prefix, sys.executable, "-m", "steelyard_server", "serve", *map(str, flags)],
                stdout=log,
                stderr=log,
            )
        try:
            _await_port(folder / "port", server)
            yield net, address
        finally:
            server.kill()
            server.wait(30)


def _await_port(path: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert server.poll() is None, path.with_name("log").read_text()
        assert time.monotonic() < deadline, "the server did not answer within 60 s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def far_course(away: tuple[namespace.Namespace, str]) -> Course:
    return Course.of(steelyard.connect(away[1]), size=SIZE, batch_size=BATCH, steps=STEPS)


@needs_namespaces
def test_a_network_that_loses_packets_is_slower_and_right(away, far_course):
    net, address = away
    with net.dropping(share=0.05):  # each way: one round trip in ten
        far_course.through(address, "lossy", lambda step: None)


@needs_namespaces
def test_a_network_of_one_megabit_is_slower_and_right(away, far_course):
    net, address = away
    net.rate("1mbit")
    try:
        far_course.through(address, "narrow", lambda step: None)
    finally:
        net.full_rate()


@needs_namespaces
def test_a_network_that_refuses_goes_unnoticed(away, far_course):
    net, address = away

    def refuse(step):
        if step % 20 == 7:
            with net.refusing(7077):
                time.sleep(0.3)

    far_course.through(address, "refused", refuse)


@needs_namespaces
def test_a_network_that_swallows_everything_is_a_pause(away, far_course):
    net, address = away
    healed: list[float] = []

    def swallow():
        with net.dropping():
            time.sleep(HOLE_SECONDS)
        healed.append(time.monotonic())

    hole = threading.Thread(target=swallow)

    def disturb(step):
        if step == STEPS // 2:
            hole.start()
            time.sleep(0.2)
        elif step == STEPS // 2 + 8:
            assert healed
            healed.append(time.monotonic())

    far_course.through(address, "swallowed", disturb)
    hole.join()
    print(f"{HOLE_SECONDS:g} s without a packet: a batch came {healed[1] - healed[0]:.1f} s after their end")
