"""A store whose map may grow no further: what is refused, what is not, and how it is emptied."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from steelyard_server.history.ops import u64
from steelyard_server.history.room import MIB, headroom, reserve
from steelyard_server.history.store import (
    Delete,
    DeleteRange,
    Durability,
    Fence,
    Put,
    Store,
    StoreFailed,
    StoreFull,
    Table,
)

META = Table.META
MOST = 4 * MIB

both = pytest.mark.parametrize("durability", ["sync", "interval"])


def opened(path: Path, durability: Durability, most: int = MOST) -> Store:
    return Store.open(path, durability=durability, interval=0.05, map_size=MIB, max_map_size=most)


def fill(store: Store, size: int, start: int = 0) -> int:
    """Writes values of `size` bytes, some 20 KB at a time, as a run does, until one is refused; its first number."""
    number, outcome = start, list[BaseException | None]()
    each = max(1, 20_000 // size)
    while True:
        done = threading.Event()

        def settle(error: BaseException | None, done: threading.Event = done) -> None:
            outcome.append(error)
            done.set()

        puts = [Put(META, b"v" + u64(number + at), bytes(size)) for at in range(each)]
        store.write([Fence(store.generation), *puts], settle)
        assert done.wait(20)
        if outcome[-1] is not None:
            assert isinstance(outcome[-1], StoreFull)
            return number
        number += each


def held(store: Store) -> list[int]:
    return [int.from_bytes(key[1:], "big") for key in store.keys(META, b"v", b"w")]


@pytest.mark.parametrize("most", [MIB, 4 * MIB, 64 * MIB, 1 << 30, 1 << 40])
def test_what_is_kept_back_leaves_most_of_any_map(most: int) -> None:
    assert 0 < reserve(most) < headroom(most) <= most // 4


@both
@pytest.mark.parametrize("size", [100, 3000, 70_000])
def test_a_full_store_keeps_what_it_acknowledged_and_can_be_emptied_again_and_again(
    tmp_path: Path, durability: Durability, size: int
) -> None:
    store = opened(tmp_path, durability)
    least = MOST
    for _ in range(3):
        end = fill(store, size)
        least = min(least, end * size)
        assert store.full is not None
        assert held(store) == list(range(end))
        store.commit([DeleteRange(META, b"v", b"w")])
        assert store.full is None
        assert store.healthy
    assert least > MOST // 3, "each time there was less room"
    end = fill(store, size)
    store.close()
    again = opened(tmp_path, durability)
    assert held(again) == list(range(end))
    again.commit([Delete(META, b"v" + u64(0))])
    again.close()


@both
def test_something_new_is_refused_before_what_there_is_must_stop(
    tmp_path: Path, durability: Durability
) -> None:
    store = opened(tmp_path, durability)
    number = 0
    while True:
        try:
            store.check_headroom("run 'x'", [Put(META, b"k", bytes(1000))])
        except StoreFull as error:
            refusal = str(error)
            break
        store.commit([Put(META, b"v" + u64(number), bytes(50_000))])
        number += 1
    for part in ("run 'x'", f"max_map_size_bytes ({MOST})", f"the last {headroom(MOST)} are kept"):
        assert part in refusal
    assert store.full is None
    more = fill(store, 5_000, start=number) - number
    assert more * 5_000 > (headroom(MOST) - reserve(MOST)) // 3
    assert store.full is not None
    store.close()


def test_a_write_that_something_else_rests_on_takes_it_along_and_nothing_before_it(tmp_path: Path) -> None:
    store = opened(tmp_path, "sync")
    release, done = threading.Event(), threading.Event()
    outcomes: list[BaseException | None] = []

    def hold(error: BaseException | None) -> None:
        release.wait(20)

    def last(error: BaseException | None) -> None:
        outcomes.append(error)
        done.set()

    store.write([Put(META, b"first", b"")], hold)
    store.write([Fence(0), Put(META, b"a", b"")], outcomes.append)
    store.write([Fence(0), Put(META, b"big", bytes(MOST))], outcomes.append)
    store.write([Fence(0), Put(META, b"rests", b"")], outcomes.append)
    store.write([Put(META, b"free", b"")], last)
    release.set()
    assert done.wait(20)
    assert [type(error) for error in outcomes] == [type(None), StoreFull, StoreFailed, type(None)]
    assert store.get_many(META, [b"a", b"big", b"rests", b"free"]) == [b"", None, None, b""]
    store.close()


def test_a_write_that_was_waited_for_takes_nobody_along(tmp_path: Path) -> None:
    store = opened(tmp_path, "sync")
    with pytest.raises(StoreFull):
        store.commit([Fence(0), Put(META, b"big", bytes(MOST))])
    assert store.full is None
    store.commit([Fence(0), Put(META, b"a", b"")])
    store.close()


@both
def test_what_leads_to_room_may_take_what_is_kept_for_it(tmp_path: Path, durability: Durability) -> None:
    store = opened(tmp_path, durability)
    fill(store, 3000)
    with pytest.raises(StoreFull):
        store.commit([Put(META, b"unmark", bytes(20_000))])
    store.commit([Put(META, b"unmark", bytes(20_000))], frees=True)
    assert store.get(META, b"unmark") == bytes(20_000)
    store.close()


@both
def test_a_greater_limit_makes_room_after_a_restart(tmp_path: Path, durability: Durability) -> None:
    store = opened(tmp_path, durability)
    end = fill(store, 3000)
    store.close()
    with_more = opened(tmp_path, durability, 2 * MOST)
    assert with_more.full is None
    assert held(with_more) == list(range(end))
    assert fill(with_more, 3000, start=end) > end + MOST // 2 // 3000
    with_more.close()


@both
def test_a_smaller_limit_than_what_there_is_still_serves_and_empties(
    tmp_path: Path, durability: Durability
) -> None:
    store = opened(tmp_path, durability)
    end = fill(store, 3000)
    store.close()
    with_less = opened(tmp_path, durability, MOST // 2)
    assert held(with_less) == list(range(end))
    assert with_less.full is not None
    with pytest.raises(StoreFull):
        with_less.commit([Put(META, b"k", b"")])
    with_less.commit([DeleteRange(META, b"v", b"w")])
    assert with_less.full is None
    with_less.commit([Put(META, b"k", b"")])
    with_less.close()
