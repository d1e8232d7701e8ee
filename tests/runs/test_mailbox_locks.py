"""Locks by name."""

import threading

import pytest

from steelyard_server.runs import locks
from steelyard_server.runs.errors import Unavailable
from steelyard_server.runs.locks import NamedLocks


def test_one_name_excludes_and_others_do_not_wait(monkeypatch):
    monkeypatch.setattr(locks, "_WAIT_SECONDS", 0.1)
    held = NamedLocks()
    with held.of(("dataset", "a")):
        with held.of(("dataset", "b"), ("run", "a")):
            pass
        with (
            pytest.raises(Unavailable, match="another change of dataset a"),
            held.of(("run", "x"), ("dataset", "a")),
        ):
            pass
        with held.of(("run", "x")):
            pass
    with held.of(("dataset", "a")):
        pass
    assert not held._locks, "a lock that nobody wants is forgotten"


def test_names_in_any_order_never_wait_for_each_other_for_ever():
    held, counts = NamedLocks(), [0]
    names = [("run", "a"), ("dataset", "b"), ("dataset", "a")]

    def work(order):
        for _ in range(300):
            with held.of(*order):
                counts[0] += 1

    threads = [
        threading.Thread(target=work, args=(order,)) for order in (names, names[::-1], names[1:] + names[:1])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert counts == [900]
