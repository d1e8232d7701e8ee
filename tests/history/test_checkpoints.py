"""Checkpoints: older ones stay loadable, chunks are shared, damage is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from steelyard_server.history.checkpoints import Checkpoints
from steelyard_server.history.chunks import CHUNK, Chunks, chunk_count
from steelyard_server.history.errors import RecordDamaged
from steelyard_server.history.ops import Delete, Op, Put, Table, prefix_range, u64
from steelyard_server.history.store import Store

RUN = 7
SIZE = 2 * CHUNK + 10
CHAIN = bytes(range(16))
Flip = Callable[[Table, bytes, int], None]


def save(
    store: Store, seq: int, value: float, changed: list[int] | None, size: int = SIZE
) -> npt.NDArray[np.float32]:
    """A checkpoint of a column that is `value` in the changed chunks and as the newest one elsewhere."""
    checkpoints = Checkpoints(store, RUN)
    newest = checkpoints.newest()
    column = np.full(size, value, np.float32)
    if newest is not None:
        old = checkpoints.load(newest)[2]["loss"][:size]
        column[: old.size] = old
    flags = np.zeros(chunk_count(size), np.bool_)
    for chunk in range(flags.size) if changed is None else changed:
        flags[chunk] = True
        column[chunk * CHUNK : (chunk + 1) * CHUNK] = value
    dirty = None if changed is None else flags
    rest = {"seq": seq}, {"b": np.array([seq])}
    store.commit(ops_of(checkpoints, seq, *rest, {"loss": column}, {"loss": dirty}))
    return column


def ops_of(checkpoints: Checkpoints, seq: int, meta: Any, blobs: Any, columns: Any, dirty: Any) -> list[Op]:
    """A checkpoint at `seq`, of step seq // 2, as a run's log makes it."""
    chunks = [
        checkpoints.chunk(seq, name, index, columns[name][index * CHUNK : (index + 1) * CHUNK])
        for name, indices in checkpoints.owed(columns, dirty).items()
        for index in indices
    ]
    return [*chunks, checkpoints.row(seq, seq // 2, CHAIN, meta, blobs, columns)]


def load(store: Store, seq: int | None = None) -> tuple[Any, ...]:
    checkpoints = Checkpoints(store, RUN)
    found = checkpoints.newest(seq)
    assert found is not None
    return checkpoints.load(found)


def test_what_was_saved_is_loaded(store: Store) -> None:
    columns: dict[str, npt.NDArray[Any]] = {
        "f32": np.random.default_rng(0).random(SIZE).astype(np.float32),
        "u32": np.arange(CHUNK, dtype=np.uint32),
        "one": np.array([7], np.int64),
        "none": np.zeros(0, np.float64),
    }
    blobs: dict[str, npt.NDArray[Any]] = {
        "b": np.array([[1, 2], [3, 4]], np.uint8),
        "flags": np.array([True, False]),
    }
    checkpoints = Checkpoints(store, RUN)
    store.commit(ops_of(checkpoints, 4, {"k": [1, {"x": None}]}, blobs, columns, {}))
    found = checkpoints.newest()
    assert found is not None
    assert (found.seq, found.step, found.chain, checkpoints.list()) == (4, 2, CHAIN, [(4, 2)])
    meta, loaded_blobs, loaded = checkpoints.load(found)
    assert meta == {"k": [1, {"x": None}]}
    for expected, got in ((blobs, loaded_blobs), (columns, loaded)):
        assert expected.keys() == got.keys()
        for name in expected:
            assert got[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(got[name], expected[name])
    loaded["f32"][0] = 3


def test_every_kept_checkpoint_loads_its_own_state_and_clean_chunks_are_not_written_again(
    store: Store,
) -> None:
    wanted = {
        2: save(store, 2, 1, None),
        4: save(store, 4, 2, [1]),
        6: save(store, 6, 3, [0]),
        8: save(store, 8, 4, []),
    }
    assert len(store.keys(Table.CHUNKS, *prefix_range(u64(RUN)))) == 3 + 1 + 1
    for seq, column in wanted.items():
        for at in (seq, seq + 1):
            meta, blobs, columns = load(store, at)
            assert (meta, blobs["b"].tolist()) == ({"seq": seq}, [seq])
            np.testing.assert_array_equal(columns["loss"], column)
    assert Checkpoints(store, RUN).newest(1) is None


@pytest.mark.parametrize("keep", [[2], [4], [2, 6], [4, 8], [], [2, 4, 6, 8]])
def test_pruning_leaves_the_kept_ones_and_the_newest_loadable_and_nothing_else(
    store: Store, keep: list[int]
) -> None:
    wanted = {
        2: save(store, 2, 1, None),
        4: save(store, 4, 2, [1]),
        6: save(store, 6, 3, [0, 1]),
        8: save(store, 8, 4, [1]),
    }
    checkpoints = Checkpoints(store, RUN)
    gone, left = checkpoints.prune_rows(keep)
    store.commit([*gone, *checkpoints.prune_chunks(left)])
    kept = sorted({*keep, 8})
    assert [seq for seq, _ in checkpoints.list()] == kept
    for seq in kept:
        np.testing.assert_array_equal(load(store, seq)[2]["loss"], wanted[seq])
    written = {0: [2, 6], 1: [2, 4, 6, 8], 2: [2]}
    needed = {(c, max(v for v in versions if v <= s)) for c, versions in written.items() for s in kept}
    assert len(store.keys(Table.CHUNKS, *prefix_range(u64(RUN)))) == len(needed)


def test_a_seq_that_has_no_checkpoint_cannot_be_kept(store: Store) -> None:
    save(store, 2, 1, None)
    with pytest.raises(ValueError, match=r"no checkpoint at \[3\]"):
        Checkpoints(store, RUN).prune_rows([3])


def test_dropping_what_is_newer_brings_back_the_older_state(store: Store) -> None:
    wanted = save(store, 2, 1, None)
    save(store, 4, 2, [1])
    save(store, 6, 3, [0])
    checkpoints = Checkpoints(store, RUN)
    store.commit(checkpoints.drop_after(3))
    assert checkpoints.list() == [(2, 1)]
    np.testing.assert_array_equal(load(store)[2]["loss"], wanted)
    other = save(store, 4, 9, [2])
    np.testing.assert_array_equal(load(store)[2]["loss"], other)


@pytest.mark.parametrize("size", [SIZE + 1, CHUNK * 3, CHUNK * 4 + 1, CHUNK, 5])
def test_a_column_whose_length_changed_needs_no_flags_for_that(store: Store, size: int) -> None:
    save(store, 2, 1, None)
    column = save(store, 4, 2, [], size)
    np.testing.assert_array_equal(load(store)[2]["loss"], column)
    assert load(store, 2)[2]["loss"].size == SIZE


def test_a_flipped_bit_in_a_chunk_is_reported_with_its_place_by_every_reader_that_takes_it(
    store: Store, flip: Flip
) -> None:
    save(store, 2, 1, None)
    save(store, 4, 2, [0])
    key = next(
        k for k in store.keys(Table.CHUNKS, *prefix_range(u64(RUN))) if k.endswith(u64(2)) and k[-9] == 1
    )
    for bit in (3, 13, 45, 8 * 1000 + 1):
        flip(Table.CHUNKS, key, bit)
        for seq in (2, 4):
            with pytest.raises(RecordDamaged, match="run 7, column 'loss', chunk 1, version 2"):
                load(store, seq)
        flip(Table.CHUNKS, key, bit)
    load(store)


def test_a_chunk_in_another_s_place_is_reported(store: Store) -> None:
    save(store, 2, 1, None)
    first, second, _ = store.scan(Table.CHUNKS, *prefix_range(u64(RUN)))
    store.commit([Put(Table.CHUNKS, second[0], first[1])])
    with pytest.raises(RecordDamaged, match="chunk 1"):
        load(store)
    store.commit([Delete(Table.CHUNKS, second[0])])
    with pytest.raises(RecordDamaged, match="chunk 1: it is missing"):
        load(store)


def test_a_damaged_row_is_reported_and_the_one_before_can_be_taken(store: Store, flip: Flip) -> None:
    save(store, 2, 1, None)
    save(store, 4, 2, [0])
    flip(Table.CHECKPOINTS, u64(RUN, 4, 2), 100)
    with pytest.raises(RecordDamaged, match=r"run 7, checkpoint at journal record 4 \(step 2\)"):
        Checkpoints(store, RUN).newest()
    assert load(store, 3)[0] == {"seq": 2}


def test_columns_whose_names_begin_alike_do_not_meet(store: Store) -> None:
    chunks = Chunks(store, RUN, "run 7")
    ops: list[Op] = []
    for i, name in enumerate(("a", "aa", "a\x01", "ä")):
        ops += chunks.write(name, np.full(3, i, np.uint8), 5)
    store.commit(ops)
    for i, name in enumerate(("a", "aa", "a\x01", "ä")):
        assert chunks.read(name, 3, np.dtype(np.uint8)).tolist() == [i] * 3
    with pytest.raises(ValueError, match="zero byte"):
        chunks.write("a\0", np.zeros(1), 5)
