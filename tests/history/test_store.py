"""The store as its callers see it: order, groups, reads, growth, refusals."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from functools import partial
from pathlib import Path

import lmdb
import pytest

from steelyard_server.history import store as store_module
from steelyard_server.history.ops import u64
from steelyard_server.history.store import (
    Delete,
    DeleteRange,
    Durability,
    Fence,
    Put,
    Store,
    StoreBusy,
    StoreError,
    StoreFailed,
    StoreFull,
    StoreOverloaded,
    StoreTooNew,
    Table,
)
from steelyard_server.history.tail import Tail

META = Table.META


def test_a_scan_pages_both_ways_over_a_half_open_range(store: Store) -> None:
    store.commit([Put(META, b"k%d" % i, b"v%d" % i) for i in range(8)])
    assert [k for k, _ in store.scan(META, b"k2", b"k5")] == [b"k2", b"k3", b"k4"]
    assert [k for k, _ in store.scan(META, b"k2", b"k5", reverse=True, limit=2)] == [b"k4", b"k3"]
    assert store.keys(META, b"k6", b"k9", limit=1) == [b"k6"]
    assert store.keys(META, b"k", b"k") == []
    assert store.last_of(META, [(b"k0", b"k3"), (b"l", b"m"), (b"a", b"b")]) == [(b"k2", b"v2"), None, None]
    assert store.get_many(META, [b"k1", b"nothing"]) == [b"v1", None]


def test_ops_of_one_write_apply_in_their_order(store: Store) -> None:
    store.commit([Put(META, b"k%d" % i, b"") for i in range(5)])
    store.commit(
        [DeleteRange(META, b"k1", b"k4"), Put(META, b"k2", b"again"), Delete(META, b"k4"), Delete(META, b"x")]
    )
    assert store.scan(META, b"k", b"l") == [(b"k0", b""), (b"k2", b"again")]


@pytest.mark.parametrize("durability", ["sync", "interval"])
def test_acknowledgements_come_in_queue_order_and_many_share_a_commit(
    tmp_path: Path, durability: Durability
) -> None:
    store = Store.open(tmp_path, durability=durability, interval=0.05)
    order: list[int] = []
    done = threading.Semaphore(0)

    def acknowledged(number: int, error: BaseException | None) -> None:
        assert error is None
        order.append(number)
        done.release()

    before = store.stats().commits
    for i in range(500):
        store.write([Put(META, b"last", u64(i))], partial(acknowledged, i), now=i % 100 == 99)
    for _ in range(500):
        assert done.acquire(timeout=20)
    assert order == list(range(500))
    assert store.get(META, b"last") == u64(499)
    assert store.stats().commits - before < 250, "500 queued writes were hardly ever committed together"
    store.close()


def test_an_interval_store_reads_what_it_acknowledged_and_keeps_it_over_a_close(tmp_path: Path) -> None:
    store = Store.open(tmp_path, durability="interval", interval=3600.0)
    acknowledged = threading.Event()
    store.write([Put(META, b"k", b"v")], lambda error: acknowledged.set())
    assert acknowledged.wait(20)
    assert store.stats().tail_bytes > 0
    assert store.get(META, b"k") == b"v"
    assert store.stats().tail_bytes == 0
    store.write([Put(META, b"k", b"w")], lambda error: None)
    store.close()
    with_sync = Store.open(tmp_path)
    assert with_sync.get(META, b"k") == b"w"
    with_sync.close()


def test_an_interval_store_reads_at_once_after_a_write_of_fences_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it waits for a commit, so no reader may wait for one either."""
    monkeypatch.setattr(store_module, "WAIT_SECONDS", 5.0)
    store = Store.open(tmp_path, durability="interval", interval=3600.0)
    try:
        answered = threading.Event()
        store.write([Fence(store.generation)], lambda error: answered.set())
        assert answered.wait(5)
        assert store.get(Table.META, b"nothing") is None
    finally:
        store.close()


def test_an_interval_store_commits_by_itself_when_the_interval_is_over(tmp_path: Path) -> None:
    store = Store.open(tmp_path, durability="interval", interval=0.05)
    before = store.stats().commits
    store.write([Put(META, b"k", b"v")], lambda error: None)
    deadline = threading.Event()
    for _ in range(400):
        if store.stats().commits > before:
            break
        deadline.wait(0.05)
    assert store.stats().commits > before
    assert store.stats().tail_bytes == 0
    store.close()


def test_a_delete_is_not_undone_by_an_older_tail(tmp_path: Path) -> None:
    """A power cut may bring back a tail that was emptied; its epoch says that it is dead."""
    store = Store.open(tmp_path, durability="interval", interval=3600.0)
    acknowledged = threading.Event()
    store.write([Put(META, b"gone", b"v")], lambda error: acknowledged.set())
    assert acknowledged.wait(20)
    tail = (tmp_path / "tail").read_bytes()
    assert tail
    store.commit([Delete(META, b"gone")])
    store.close()
    (tmp_path / "tail").write_bytes(tail)
    again = Store.open(tmp_path)
    assert again.get(META, b"gone") is None
    again.close()


def test_the_map_grows_ahead_of_need_from_a_tiny_one(tmp_path: Path) -> None:
    store = Store.open(tmp_path, map_size=1 << 16)
    for i in range(100):
        store.commit([Put(META, b"k%03d" % i, bytes(20_000))])
    stats = store.stats()
    assert stats.map_size >= stats.used_bytes > 2_000_000
    assert len(store.keys(META, b"k", b"l")) == 100
    assert store.healthy
    assert store.generation == 0
    store.close()


def test_a_transaction_far_bigger_than_the_map_is_applied_whole(tmp_path: Path) -> None:
    store = Store.open(tmp_path, map_size=1 << 16)
    store.commit([Put(META, b"k%d" % i, bytes(1 << 20)) for i in range(8)])
    assert [len(v) for _, v in store.scan(META, b"k", b"l")] == [1 << 20] * 8
    store.close()


@pytest.mark.parametrize("durability", ["sync", "interval"])
def test_a_full_map_refuses_the_big_write_and_takes_the_small_one(
    tmp_path: Path, durability: Durability
) -> None:
    store = Store.open(tmp_path, durability=durability, map_size=1 << 20, max_map_size=1 << 20)
    with pytest.raises(StoreFull, match=r"max_map_size_bytes \(1048576\)"):
        store.commit([Put(META, b"big", bytes(1 << 21))])
    assert store.healthy
    assert store.generation == 0, "whoever wrote it waited, so that nothing rests on it"
    store.commit([Put(META, b"small", b"v")])
    assert store.get(META, b"small") == b"v"
    assert store.get(META, b"big") is None
    store.close()


def test_a_full_map_fails_only_the_write_that_is_too_big_of_a_group(tmp_path: Path) -> None:
    store = Store.open(tmp_path, map_size=1 << 20, max_map_size=1 << 20)
    release, done = threading.Event(), threading.Event()
    outcomes: list[BaseException | None] = []

    def hold(error: BaseException | None) -> None:
        release.wait(20)

    def finish(error: BaseException | None) -> None:
        outcomes.append(error)
        done.set()

    store.write([Put(META, b"first", b"")], hold)
    store.write([Put(META, b"a", b"")], outcomes.append)
    store.write([Put(META, b"big", bytes(1 << 21))], outcomes.append)
    store.write([Fence(0), Put(META, b"fenced", b"")], outcomes.append)
    store.write([Put(META, b"b", b"")], finish)
    release.set()
    assert done.wait(20)
    assert [type(error) for error in outcomes] == [type(None), StoreFull, StoreFailed, type(None)]
    assert store.keys(META, b"a", b"c") == [b"a", b"b"]
    store.close()


def test_growth_waits_for_readers_and_readers_see_every_commit(tmp_path: Path) -> None:
    store = Store.open(tmp_path, map_size=1 << 16)
    stop, errors = threading.Event(), list[BaseException]()

    def read() -> None:
        seen = 0
        try:
            while not stop.is_set():
                count = len(store.keys(META, b"k", b"l"))
                assert count >= seen
                seen = count
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for i in range(60):
        store.commit([Put(META, b"k%03d" % i, bytes(50_000))])
    stop.set()
    for reader in readers:
        reader.join(20)
    assert not errors
    store.close()


def test_a_second_opener_is_told_who_holds_the_directory(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreBusy, match=f"process {os.getpid()}") as refusal:
        Store.open(tmp_path / "store")
    assert str(tmp_path / "store") in str(refusal.value)
    store.commit([Put(META, b"k", b"v")])


def test_a_folder_that_it_makes_is_its_owner_s_and_one_that_was_there_keeps_its_rights(
    tmp_path: Path,
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o750)
    for name, mode in (("new", 0o700), ("there", 0o750)):
        Store.open(tmp_path / name).close()
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_a_closed_directory_can_be_opened_again(tmp_path: Path) -> None:
    for i in range(3):
        store = Store.open(tmp_path)
        assert len(store.keys(META, b"k", b"l")) == i
        store.commit([Put(META, b"k%d" % i, b"")])
        store.close()
        store.close()
    with pytest.raises(StoreError, match="closed"):
        store.write([Put(META, b"k", b"")], lambda error: None)


def test_a_newer_format_is_refused_untouched(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.commit([Put(META, b"format", u64(store_module.FORMAT_VERSION + 1))])
    store.close()
    before = (tmp_path / "data.mdb").read_bytes()
    with pytest.raises(StoreTooNew, match=f"format {store_module.FORMAT_VERSION + 1}"):
        Store.open(tmp_path)
    assert (tmp_path / "data.mdb").read_bytes() == before


def test_an_older_format_is_today_s_once_it_was_opened(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.commit([Put(META, b"format", u64(1)), Put(META, b"k", b"v")])
    store.close()
    store = Store.open(tmp_path)
    assert store.get(META, b"format") == u64(store_module.FORMAT_VERSION)
    assert store.get(META, b"k") == b"v"
    store.close()


def test_another_program_s_lmdb_is_refused_untouched(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), max_dbs=2) as env, env.begin(write=True) as txn:
        txn.put(b"k", b"v")
    before = (tmp_path / "data.mdb").read_bytes()
    with pytest.raises(StoreFailed, match="not a Steelyard store"):
        Store.open(tmp_path)
    assert (tmp_path / "data.mdb").read_bytes() == before


def test_a_bad_op_is_refused_before_anything_is_queued(store: Store) -> None:
    with pytest.raises(ValueError, match=r"1\.\.511 bytes, not 512"):
        store.commit([Put(META, b"k", b""), Put(META, bytes(512), b"")])
    with pytest.raises(ValueError, match="not 0"):
        store.commit([DeleteRange(META, b"", b"k")])
    assert store.get(META, b"k") is None


def test_a_full_queue_refuses_after_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "WAIT_SECONDS", 0.2)
    store = Store.open(tmp_path, max_queue_bytes=10_000)
    release = threading.Event()
    holding = threading.Event()

    def hold(error: BaseException | None) -> None:
        holding.set()
        release.wait(20)

    store.write([Put(META, b"k", b"")], hold)
    assert holding.wait(20)
    store.write([Put(META, b"k", bytes(50_000))], lambda error: None)
    with pytest.raises(StoreOverloaded, match="limit of 10000"):
        store.write([Put(META, b"k", b"")], lambda error: None)
    release.set()
    monkeypatch.undo()
    store.commit([Put(META, b"k", b"end")])
    assert store.get(META, b"k") == b"end"
    store.close()


def test_a_callback_that_waits_for_the_writer_is_told_so_and_harms_nobody(store: Store) -> None:
    raised: list[BaseException] = []

    def careless(error: BaseException | None) -> None:
        try:
            store.commit([Put(META, b"k", b"")])
        except StoreError as refusal:
            raised.append(refusal)
            raise

    store.write([Put(META, b"a", b"")], careless)
    store.commit([Put(META, b"b", b"")])
    assert "callback" in str(raised[0])


def test_a_forked_child_may_not_use_the_store(store: Store) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            store.get(META, b"k")
        except StoreError as error:
            os._exit(0 if "forked child" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.commit([Put(META, b"k", b"v")])


def test_a_fence_of_another_generation_refuses_the_whole_write(store: Store) -> None:
    with pytest.raises(StoreFailed, match="reloaded"):
        store.commit([Put(META, b"k", b"v"), Fence(store.generation + 1)])
    assert store.get(META, b"k") is None
    store.commit([Fence(store.generation), Put(META, b"k", b"v")])
    assert store.get(META, b"k") == b"v"


def test_what_a_torn_tail_holds_is_never_taken_for_what_is_written_after_it(tmp_path: Path) -> None:
    """Power goes twice: what lies behind a torn record of the first time must not follow a whole one of the second."""
    path = tmp_path / "s"
    puts = [[Put(Table.META, b"k%d" % number, b"first")] for number in range(2)]
    with contextlib.closing(Store.open(path)):
        pass
    tail = Tail(path / "tail")
    tail.append(1, puts)
    tail.close()
    torn = bytearray((path / "tail").read_bytes())
    torn[len(torn) // 2 - 1] ^= 1
    (path / "tail").write_bytes(torn)
    with contextlib.closing(Store.open(path)) as store:
        assert [store.get(Table.META, b"k%d" % number) for number in range(2)] == [None, None]
    tail = Tail(path / "tail")
    epoch = _epoch_to_come(path)
    tail.append(epoch, [[Put(Table.META, b"k0", b"again")]])
    tail.close()
    half = (path / "tail").read_bytes()
    assert len(half) == len(torn) // 2
    (path / "tail").write_bytes(half + torn[len(half) :])
    with contextlib.closing(Store.open(path)) as store:
        assert [store.get(Table.META, b"k%d" % number) for number in range(2)] == [b"again", None]


def _epoch_to_come(path: Path) -> int:
    with contextlib.closing(Store.open(path)) as store:
        return store._pending.epoch
