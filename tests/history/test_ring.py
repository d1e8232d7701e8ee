"""The per-example history against a dict of deques."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard_server.history.errors import RecordDamaged
from steelyard_server.history.ops import Table, prefix_range, u64
from steelyard_server.history.ring import History
from steelyard_server.history.store import Store

Report = tuple[int, int, float]
Twin = dict[int, deque[tuple[int, float]]]
run_ids = itertools.count(1)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store.open(tmp_path_factory.mktemp("ring"))
    yield opened
    opened.close()


def merge(store: Store, history: History, seq: int, reports: list[Report]) -> None:
    ids, steps, losses = (np.array([r[i] for r in reports]) for i in range(3))
    store.commit(history.merge(seq, ids.astype(np.int64), steps.astype(np.int64), losses.astype(np.float32)))


def rows(history: History, ids: list[int], at_seq: int | None = None) -> list[list[tuple[int, float]]]:
    counts, steps, losses = history.read(np.array(ids, np.int64), at_seq)
    ends = np.cumsum(counts)
    return [
        list(zip(steps[e - c : e].tolist(), losses[e - c : e].tolist(), strict=True))
        for c, e in zip(counts, ends, strict=True)
    ]


reports = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 2**32 - 1), st.floats(width=32, allow_nan=False)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60)
@given(size=st.integers(1, 9), merges=st.lists(reports, max_size=4))
def test_every_version_holds_the_last_reports_of_every_id(
    shared_store: Store, size: int, merges: list[list[Report]]
) -> None:
    history = History(shared_store, next(run_ids), size)
    twin: Twin = {}
    wanted = []
    for seq, batch in enumerate(merges):
        merge(shared_store, history, seq, batch)
        for example, step, loss in batch:
            twin.setdefault(example, deque(maxlen=size)).append((step, float(np.float32(loss))))
        wanted.append([list(twin.get(example, ())) for example in range(210)])
    for seq, expected in enumerate(wanted):
        assert rows(history, list(range(210)), seq) == expected
    if wanted:
        assert rows(history, list(range(210))) == wanted[-1]


def test_ids_may_be_asked_in_any_order_and_twice(store: Store) -> None:
    history = History(store, 1, 2)
    merge(store, history, 0, [(5, 1, 0.5), (900, 1, 1.5), (5, 2, 2.5), (5, 3, 3.5)])
    assert rows(history, [900, 5, 5, 6]) == [[(1, 1.5)], [(2, 2.5), (3, 3.5)], [(2, 2.5), (3, 3.5)], []]


def test_losses_come_back_bit_for_bit(store: Store) -> None:
    history = History(store, 1, 3)
    losses = np.array([np.nan, np.inf, -0.0], np.float32)
    store.commit(history.merge(0, np.array([3, 3, 3]), 7, losses))
    assert history.read(np.array([3]))[2].tobytes() == losses.tobytes()


def test_only_the_chunks_of_the_reported_ids_are_written(store: Store) -> None:
    history = History(store, 1, 8)
    assert history.ids_per_chunk == 62
    merge(store, history, 0, [(i, 0, 0.0) for i in range(1000)])
    assert len(history.merge(1, np.array([0, 1, 61, 620]), 1, np.zeros(4, np.float32))) == 2


def test_an_older_version_is_read_until_pruned_and_comes_back_when_the_newer_is_dropped(store: Store) -> None:
    history = History(store, 1, 4)
    for seq in (2, 4, 6):
        merge(store, history, seq, [(1, seq, 0.0)])
    assert rows(history, [1], 5) == [[(2, 0.0), (4, 0.0)]]
    store.commit(history.prune([4]))
    assert rows(history, [1], 3) == [[]]
    assert rows(history, [1], 4) == [[(2, 0.0), (4, 0.0)]]
    store.commit(list(history.drop_after(5)))
    assert rows(history, [1]) == [[(2, 0.0), (4, 0.0)]]


def test_a_copy_is_the_other_run_s_own(store: Store) -> None:
    history, other = History(store, 1, 4), History(store, 2, 4)
    merge(store, history, 2, [(1, 2, 0.5), (100, 2, 0.5)])
    merge(store, history, 4, [(1, 4, 1.5), (9000, 4, 0.5)])
    store.commit(history.copy_to(2, 3, 1))
    merge(store, other, 2, [(1, 9, 9.0)])
    assert rows(other, [1, 100, 9000]) == [[(2, 0.5), (9, 9.0)], [(2, 0.5)], []]
    assert rows(other, [1], 1) == [[(2, 0.5)]]
    assert rows(history, [1]) == [[(2, 0.5), (4, 1.5)]]


def test_a_flipped_bit_is_reported_with_its_ids_and_never_returned(
    store: Store, flip: Callable[[Table, bytes, int], None]
) -> None:
    history = History(store, 1, 8)
    merge(store, history, 2, [(70, 2, 0.5)])
    (key,) = store.keys(Table.HISTORY, *prefix_range(u64(1)))
    for bit in range(0, 8 * len(store.get(Table.HISTORY, key) or b""), 501):
        flip(Table.HISTORY, key, bit)
        with pytest.raises(RecordDamaged, match="run 1, history of ids 62..123"):
            history.read(np.array([123]))
        with pytest.raises(RecordDamaged, match="history of ids 62..123"):
            history.merge(3, np.array([123]), 3, np.zeros(1, np.float32))
        flip(Table.HISTORY, key, bit)
    assert rows(history, [70]) == [[(2, 0.5)]]


def test_a_size_of_nothing_keeps_nothing(store: Store) -> None:
    history = History(store, 1, 0)
    assert history.merge(0, np.array([1]), 0, np.zeros(1, np.float32)) == []
    assert rows(history, [1, 2]) == [[], []]


def test_bad_reports_are_refused(store: Store) -> None:
    history = History(store, 1, 2)
    with pytest.raises(ValueError, match="-4"):
        history.merge(0, np.array([-4]), 0, np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="4294967296"):
        history.merge(0, np.array([4]), 2**32, np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="one loss for each"):
        history.merge(0, np.array([4]), 0, np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="-1"):
        history.read(np.array([-1]))
    with pytest.raises(ValueError, match="256"):
        History(store, 1, 256)


def test_a_run_opened_with_another_size_is_told_so(store: Store, tmp_path: Path) -> None:
    merge(store, History(store, 1, 2), 0, [(1, 1, 1.0)])
    with pytest.raises(RecordDamaged, match="expected K = 3"):
        History(store, 1, 3).read(np.array([1]))
