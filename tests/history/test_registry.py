"""Datasets and runs by name."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from steelyard_server.core.events import StepClosed
from steelyard_server.history.checkpoints import Checkpoints
from steelyard_server.history.errors import RecordDamaged
from steelyard_server.history.journal import Journal
from steelyard_server.history.ops import Table
from steelyard_server.history.registry import Dataset, Registry, Run
from steelyard_server.history.ring import History
from steelyard_server.history.store import Store

DATASET = Dataset("text", 1, 200_000, "sha", 0, (), 12.5)
RUN = Run("gpt-a", 2, "text", {"seed": 2**64 - 1, "policy": {"draw": {"method": "shuffle"}}}, "p", 3, 12.5)


def test_rows_come_back_sorted_by_name(store: Store) -> None:
    registry = Registry(store)
    second = Dataset("a", 3, 5, created_unix_seconds=1.0)
    store.commit([*registry.put_dataset(DATASET), *registry.put_dataset(second), *registry.put_run(RUN)])
    assert registry.datasets() == [second, DATASET]
    assert registry.dataset("text") == DATASET
    assert registry.runs() == [RUN]
    assert registry.run("gpt-a") == RUN
    assert registry.run("gpt") is None
    assert registry.dataset("gpt-a") is None


def test_ids_are_never_given_twice_by_whatever_thread_or_opening(store: Store) -> None:
    registry, given, threads = Registry(store), list[int](), []
    for _ in range(4):
        threads.append(
            threading.Thread(target=lambda: given.extend(registry.allocate_id() for _ in range(10)))
        )
        threads[-1].start()
    for thread in threads:
        thread.join(20)
    given.append(Registry(store).allocate_id())
    assert sorted(given) == list(range(1, 42))


def test_retired_ids_are_counted_once(store: Store) -> None:
    registry, dataset = Registry(store), DATASET
    for ids in ([5, 70_000, 5], [5, 199_999]):
        dataset, ops = registry.retire(dataset, np.array(ids))
        store.commit(ops)
    assert registry.dataset("text") == dataset
    assert dataset.retired == 3
    assert registry.retired(dataset).tolist() == [5, 70_000, 199_999]
    with pytest.raises(ValueError, match="ids 0..199999; got 200000"):
        registry.retire(dataset, np.array([1, 200_000, -1]))


def test_a_column_is_nan_where_it_was_never_set_and_grows_with_the_dataset(store: Store) -> None:
    registry = Registry(store)
    dataset, ops = registry.set_column(
        DATASET, "quality", np.array([3, 70_000]), np.array([1, 2], np.float32)
    )
    store.commit(ops)
    dataset, ops = registry.set_column(dataset, "quality", np.array([70_001]), np.array([3], np.float32))
    store.commit(ops)
    grown = Dataset(dataset.name, dataset.dataset_id, 300_000, columns=dataset.columns)
    column = registry.column(grown, "quality")
    assert (column.dtype, column.size) == (np.float32, 300_000)
    assert np.flatnonzero(~np.isnan(column)).tolist() == [3, 70_000, 70_001]
    assert column[[3, 70_000, 70_001]].tolist() == [1, 2, 3]
    assert registry.dataset("text") == dataset
    with pytest.raises(KeyError):
        registry.column(dataset, "difficulty")


def test_a_deleted_run_leaves_nothing_and_takes_nothing_of_its_neighbours(store: Store) -> None:
    registry = Registry(store)
    for run_id in (2, 3, 4):
        store.commit(registry.put_run(Run(f"r{run_id}", run_id, "text", {})))
        store.commit(Journal(store, run_id).append([StepClosed(0, "owner")])[0])
        checkpoints, column = Checkpoints(store, run_id), np.zeros(5)
        store.commit([checkpoints.chunk(1, "c", 0, column)])
        store.commit([checkpoints.row(1, 0, bytes(16), {}, {}, {"c": column})])
        store.commit(History(store, run_id, 2).merge(1, np.array([1]), 0, np.zeros(1, np.float32)))
    doomed = registry.run("r3")
    assert doomed is not None
    store.commit([*registry.delete_run(doomed), *registry.owned(doomed)])
    assert [run.name for run in registry.runs()] == ["r2", "r4"]
    for table in (Table.JOURNAL, Table.CHECKPOINTS, Table.CHUNKS, Table.HISTORY):
        owners = {int.from_bytes(key[:8], "big") for key in store.keys(table, b"\0", b"\xff")}
        assert owners == {2, 4}, table


def test_a_deleted_dataset_leaves_nothing(store: Store) -> None:
    registry = Registry(store)
    dataset, ops = registry.retire(DATASET, np.array([1]))
    store.commit(ops)
    store.commit(registry.delete_dataset(dataset))
    assert registry.datasets() == []
    assert store.keys(Table.CHUNKS, b"\0", b"\xff") == []


def test_a_damaged_row_is_named(store: Store, flip: Callable[[Table, bytes, int], None]) -> None:
    registry = Registry(store)
    store.commit([*registry.put_run(RUN), *registry.put_dataset(DATASET)])
    flip(Table.RUNS, b"gpt-a", 90)
    flip(Table.DATASETS, b"text", 90)
    with pytest.raises(RecordDamaged, match="row of run 'gpt-a'"):
        registry.run("gpt-a")
    with pytest.raises(RecordDamaged, match="row of dataset 'text'"):
        registry.datasets()


def test_what_belongs_to_nobody_is_found_and_nothing_else(store: Store) -> None:
    registry = Registry(store)
    dataset, ops = registry.retire(DATASET, np.array([5]))
    store.commit([*ops, *registry.put_run(RUN)])
    for owner in (RUN.run_id, 3, 2**40):
        store.commit(Journal(store, owner).append([StepClosed(1, "owner"), StepClosed(2, "owner")])[0])
        checkpoints = Checkpoints(store, owner)
        column = np.arange(70_000, dtype=np.float32)
        store.commit(
            [checkpoints.chunk(2, "loss", i, part) for i, part in enumerate(np.split(column, [65536]))]
        )
        store.commit([checkpoints.row(2, 0, bytes(16), {}, {}, {"loss": column})])
        store.commit(History(store, owner, 2).merge(2, np.array([1]), np.array([0], np.uint64), column[:1]))
    before = Journal(store, RUN.run_id).next_seq, len(Checkpoints(store, RUN.run_id).list())
    store.commit(list(registry.remains([dataset], [RUN])))
    assert list(registry.remains([dataset], [RUN])) == []
    assert (
        (Journal(store, RUN.run_id).next_seq, len(Checkpoints(store, RUN.run_id).list())) == before == (2, 1)
    )
    assert registry.retired(dataset).tolist() == [5]
    for owner in (3, 2**40):
        assert Journal(store, owner).next_seq == 0
        assert Checkpoints(store, owner).list() == []
