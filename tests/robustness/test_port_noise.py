"""What comes to the port that is no client of ours: a training beside it goes on, and nothing of it stays."""

from __future__ import annotations

import random
import resource
import threading
import time
from collections.abc import Iterator

import pytest

from steelyard.testing import ServerProcess
from tests.robustness.network import noise
from tests.robustness.network.process import descriptors, private_bytes
from tests.robustness.network.training import Course

MIB = 1 << 20
MOST_BYTES = 128 * MIB
"""What stays of the largest: 8 MiB of headers six times over, of which gRPC's allocator keeps what it took once. Twenty
times over it is no more."""
HANDSHAKE_SECONDS = 2
IDLE = 1000

pytestmark = pytest.mark.xdist_group("port noise")


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("noise")
    with ServerProcess(folder, handshake_timeout_seconds=HANDSHAKE_SECONDS) as process:
        yield process


@pytest.fixture(scope="module")
def course(process: ServerProcess) -> Course:
    return Course.of(process.client(), size=2000, batch_size=64, steps=40)


@pytest.fixture
def unharmed(course, process, eventually, request):
    """Trains beside what the test does, and looks for what has stayed."""
    base, before = descriptors(process.pid), private_bytes(process.pid)
    begun, done = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def train():
        def disturb(step):
            begun.set()
            if step == course.steps - 10:
                assert done.wait(60)

        try:
            name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
            course.through(process.address, name, disturb)
        except BaseException as error:
            errors.append(error)

    trainer = threading.Thread(target=train)
    trainer.start()
    assert begun.wait(60)
    yield
    done.set()
    trainer.join(60)
    assert not errors
    eventually(lambda: descriptors(process.pid) <= base)
    assert private_bytes(process.pid) - before <= MOST_BYTES


@pytest.mark.parametrize("kind", noise.KINDS)
def test_noise_is_closed_and_harms_nobody(unharmed, process, kind):
    dice = random.Random(kind)
    for _ in range(5):
        one = noise.make(process.address, kind, dice)
        one.close()
    one = noise.make(process.address, kind, dice)
    # What is legal HTTP/2 so far may stay open; its own side has to close it then.
    if kind not in ("rapid_reset", "ping_flood", "settings_flood", "random_frames"):
        assert noise.is_closed(one, 10 * HANDSHAKE_SECONDS)
    one.close()


def test_calls_of_others_are_answered_while_strangers_take_back_thousands(process):
    """gRPC lets go of calls by chance where more than a thousand wait for the server."""
    client, dice, log = process.client(), random.Random(7), process.directory / "server.log"
    before = log.stat().st_size
    for _ in range(3):
        for _ in range(5):
            noise.make(process.address, "rapid_reset", dice).close()
        for _ in range(5):
            client.list_runs()
    assert log.stat().st_size - before < 100_000


def test_memory_that_endless_headers_took_is_given_back(process, eventually):
    for _ in range(20):
        noise.make(process.address, "header_flood", random.Random(1)).close()
    held = [private_bytes(process.pid)]

    def given_back() -> bool:
        held.append(private_bytes(process.pid))
        return max(held) - held[-1] > 96 * MIB

    eventually(given_back)


def test_connections_that_say_nothing_are_closed(unharmed, process):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 200
    began = time.monotonic()
    with noise.idle(process.address, min(IDLE, most)) as connections:
        opened = time.monotonic() - began
        assert process.client().list_runs()
        assert all(noise.is_closed(one, 10 * HANDSHAKE_SECONDS) for one in connections)
        closed = time.monotonic() - began
        print(f"{len(connections)} idle connections: open after {opened:.2f} s, closed after {closed:.1f} s")


def test_connections_that_say_a_byte_a_second_are_closed(unharmed, process):
    with noise.idle(process.address, 20) as connections:
        noise.drip(connections, noise.PREFACE, HANDSHAKE_SECONDS + 3)
        assert all(noise.is_closed(one, 1) for one in connections)
