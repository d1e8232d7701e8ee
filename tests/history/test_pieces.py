"""Long values lie in pieces: nobody who reads sees that, and the file stays as long as what is in it asks for."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import lmdb
import pytest

from steelyard_server.history import store as store_module
from steelyard_server.history.ops import Delete, DeleteRange, Op, Put, Table, u64
from steelyard_server.history.room import PIECE_BYTES
from steelyard_server.history.store import Snapshot, Store

CHUNKS, JOURNAL = Table.CHUNKS, Table.JOURNAL
ROUNDS = 30
SIZES = (0, 1, 13, 4000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 300_001)


def value(size: int, seed: int = 0, first: bytes = b"") -> bytes:
    return (first + random.Random(f"{size} {seed}").randbytes(size))[:size]


def pieces(store: Store) -> int:
    return len(store.keys(Table.PIECES, b"\0", b"\xff" * 12))


def test_a_value_of_any_length_is_read_back_in_every_way(store: Store, tmp_path: Path) -> None:
    """Also one that looks like what stands in the place of a value in pieces."""
    rows = [(u64(1, number), value(size)) for number, size in enumerate(SIZES)]
    rows += [(u64(2, number), value(size, first=b"\xff")) for number, size in enumerate(SIZES)]
    store.commit([Put(CHUNKS, *row) for row in rows])
    everything = (CHUNKS, u64(0), u64(9))
    assert pieces(store) > 40
    assert store.scan(*everything) == rows
    assert store.scan(*everything, reverse=True) == rows[::-1]
    assert [(key, store.get(CHUNKS, key)) for key, _ in rows] == rows
    assert store.get_many(CHUNKS, [key for key, _ in rows]) == [content for _, content in rows]
    assert store.last_of(CHUNKS, [(u64(1), u64(2)), (u64(3), u64(4))]) == [rows[len(SIZES) - 1], None]
    assert store.size_of(*everything) == sum(len(key) + len(content) for key, content in rows)
    found = pieces(store)
    store.close()
    snapshot = Snapshot(tmp_path / "store", shared=False)
    assert list(snapshot.walk(CHUNKS)) == list(snapshot.walk_range(*everything)) == rows
    assert snapshot.pieces() == snapshot.entries(Table.PIECES) == found
    snapshot.close()


def test_the_pieces_of_a_value_go_with_it_and_no_others(store: Store) -> None:
    """Against a dictionary: values replaced, deleted one by one and by range, several times in one transaction."""
    chance, model = random.Random(5), dict[bytes, bytes]()
    for turn in range(150):
        ops: list[Op] = []
        for _ in range(chance.randrange(1, 4)):
            # Some keys begin with others.
            start, stop = (b"k%d" % chance.randrange(20) for _ in range(2))
            match chance.randrange(4):
                case 0:
                    ops.append(Delete(CHUNKS, start))
                    model.pop(start, None)
                case 1:
                    ops.append(DeleteRange(CHUNKS, start, stop + b"\0"))
                    model = {key: old for key, old in model.items() if not start <= key <= stop}
                case _:
                    model[start] = value(chance.choice(SIZES), turn)
                    ops.append(Put(CHUNKS, start, model[start]))
        store.commit(ops)
        assert dict(store.scan(CHUNKS, b"\0", b"\xff")) == model
        assert pieces(store) == sum(-(-len(v) // PIECE_BYTES) for v in model.values() if len(v) > PIECE_BYTES)
    store.commit([DeleteRange(CHUNKS, b"\0", b"\xff")])
    assert pieces(store) == 0


def test_a_value_of_which_a_piece_is_missing_reads_as_nothing(store: Store, tmp_path: Path) -> None:
    store.commit([Put(CHUNKS, b"k", value(5 * PIECE_BYTES)), Put(CHUNKS, b"l", value(2 * PIECE_BYTES))])
    store.close()
    with lmdb.open(str(tmp_path / "store"), max_dbs=32) as env:
        table = env.open_db(b"pieces", create=False)
        with env.begin(write=True) as txn:
            assert txn.delete(u64(0) + b"\0\0\0\3", db=table)
    snapshot = Snapshot(tmp_path / "store", shared=False)
    assert [snapshot.get(CHUNKS, key) for key in (b"k", b"l")] == [b"", value(2 * PIECE_BYTES)]
    assert (snapshot.pieces(), snapshot.entries(Table.PIECES)) == (7, 6)
    snapshot.close()


def test_a_store_of_before_there_were_pieces_is_read_and_goes_on(tmp_path: Path) -> None:
    """As format 3 has it: long values whole, and no table of pieces."""
    long, longer = value(100_000), value(200_000)
    Store.open(tmp_path).close()
    with lmdb.open(str(tmp_path), max_dbs=32) as env:
        chunks, meta = env.open_db(b"chunks"), env.open_db(b"meta")
        with env.begin(write=True) as txn:
            for key in (b"a", b"b", b"c"):
                txn.put(key, long, db=chunks)
            txn.put(b"format", u64(3), db=meta)
            txn.drop(env.open_db(b"pieces", txn=txn))
    before = Snapshot(tmp_path, shared=False)
    assert (before.get(CHUNKS, b"a"), before.pieces(), before.entries(Table.PIECES)) == (long, 0, 0)
    before.close()
    store = Store.open(tmp_path)
    assert store.get(CHUNKS, b"a") == long
    store.commit([Put(CHUNKS, b"a", longer), Delete(CHUNKS, b"b")])
    assert store.scan(CHUNKS, b"a", b"d") == [(b"a", longer), (b"c", long)]
    assert store.get(Table.META, b"format") == u64(store_module.FORMAT_VERSION)
    store.close()


def test_pieces_are_of_no_op(store: Store) -> None:
    with pytest.raises(ValueError, match="table pieces is the store's own"):
        store.commit([Put(Table.PIECES, b"k", b"v")])


def test_the_file_ends_where_long_values_are_replaced_among_short_ones(tmp_path: Path) -> None:
    """What a training does: records at every step, of which the oldest go, and now and then a checkpoint, of a row of
    megabytes, parts of columns and rows of losses. With long values whole the file came to 4.3 times what is in use."""
    store, used, steps = Store.open(tmp_path), list[int](), itertools.count()

    def train(count: int) -> int:
        for _ in range(count):
            step = next(steps)
            store.write([Put(JOURNAL, u64(1, 2 * step), bytes(13_000))], lambda error: None)
            store.commit([Put(JOURNAL, u64(1, 2 * step + 1), bytes(5000))])
        return step

    for turn in range(ROUNDS):
        train(60)
        for part in range(4):
            store.commit([Put(CHUNKS, u64(part, turn), bytes(262_150))])
            train(2)
        for first in range(0, 400, 50):
            store.commit(
                [Put(Table.HISTORY, u64(row, turn), bytes(4000)) for row in range(first, first + 50)]
            )
            train(1)
        store.commit([Put(Table.CHECKPOINTS, u64(turn), bytes(2_000_000 + turn % 3 * 4096))])
        store.commit([DeleteRange(Table.CHECKPOINTS, u64(0), u64(turn))])
        store.commit([DeleteRange(JOURNAL, u64(0), u64(1, 2 * max(0, train(4) - 100)))])
        store.commit([Delete(CHUNKS, u64(part, turn - 1)) for part in range(4) if turn])
        store.commit([Delete(Table.HISTORY, u64(row, turn - 1)) for row in range(400) if turn])
        used.append(store.stats().used_bytes)
    live = store.stats().live_bytes
    store.close()
    assert used[-1] < 1.05 * used[ROUNDS // 3]
    assert used[-1] < 2.5 * live, "1 is what is in use, 1 what a checkpoint and its pruning replace"
