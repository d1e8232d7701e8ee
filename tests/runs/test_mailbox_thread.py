"""The thread that owns a run."""

import queue
import threading
import time
from functools import partial

import pytest

from steelyard_server.runs.errors import Unavailable
from steelyard_server.runs.mailbox import TURN_MESSAGES, Mailbox


@pytest.fixture
def mailbox():
    box = Mailbox("run 'r'", lambda: None, tick_seconds=0.02)
    box.start()
    yield box
    box.close(10)


def test_messages_are_handled_in_order_and_what_they_raise_ends_nothing(mailbox):
    seen: list[int] = []
    for number in range(100):
        assert mailbox.post(partial(seen.append, number))
    mailbox.post(lambda: 1 / 0)
    assert mailbox.call(lambda: len(seen)) == 100
    assert seen == list(range(100))
    with pytest.raises(ZeroDivisionError):
        mailbox.call(lambda: 1 / 0)


def test_a_call_whose_turn_does_not_come_is_unavailable_and_never_runs(mailbox):
    release, ran = threading.Event(), []
    mailbox.post(lambda: release.wait(10))
    with pytest.raises(Unavailable, match="did not answer within 0.1 s"):
        mailbox.call(lambda: ran.append(1), timeout=0.1)
    release.set()
    mailbox.call(lambda: None)
    assert ran == []


def test_what_is_posted_was_handled_or_refused_whenever_the_mailbox_closes():
    """No message is swallowed by an end that came at the same moment: its sender would wait for ever."""
    for _ in range(50):
        box = Mailbox("m", lambda: None)
        box.start()
        handled: queue.SimpleQueue[int] = queue.SimpleQueue()
        accepted = 0
        closer = threading.Thread(target=box.close, args=(10,))
        closer.start()
        for number in range(200):
            accepted += box.post(partial(handled.put, number))
        closer.join(10)
        assert handled.qsize() == accepted
        with pytest.raises(Unavailable, match="closed"):
            box.call(lambda: None)


def test_the_tick_comes_also_while_messages_do():
    ticks = []
    box = Mailbox("m", lambda: ticks.append(time.monotonic()), tick_seconds=0.02)
    box.start()
    deadline = time.monotonic() + 5
    while len(ticks) < 3:
        assert time.monotonic() < deadline
        box.call(lambda: None)
    assert box.close(10)


def test_what_has_gathered_is_handled_in_one_turn_and_its_end_comes_once():
    seen: list[str] = []
    box = Mailbox("m", lambda: None, tick_seconds=60, after_turn=lambda: seen.append("end"))
    release, held = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        release.wait(10)
        seen.append("first")

    box.start()
    box.post(hold)
    assert held.wait(10)
    for name in ("second", "third"):
        box.post(partial(seen.append, name))
    release.set()
    assert box.close(10)
    assert seen == ["first", "second", "third", "end"]


def test_a_turn_ends_though_messages_keep_coming():
    seen: list[int] = []
    box = Mailbox("m", lambda: None, tick_seconds=60, after_turn=lambda: seen.append(-1))
    for number in range(TURN_MESSAGES + 1):
        box.post(partial(seen.append, number))
    box.start()
    assert box.close(10)
    assert seen[: TURN_MESSAGES + 3] == [*range(TURN_MESSAGES), -1, TURN_MESSAGES, -1]
