"""The per-example history as checkpoints write it, merge it, break off and go back, against a dict of deques."""

from __future__ import annotations

import copy
import itertools
import shutil
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from steelyard_server.history import losses as losses_module
from steelyard_server.history import segments as segments_module
from steelyard_server.history.errors import RecordDamaged
from steelyard_server.history.losses import LossHistory
from steelyard_server.history.ops import Delete, Put, Table, prefix_range, u64
from steelyard_server.history.ring import PAGE_BYTES, History
from steelyard_server.history.store import Store

K = 3
SIZE = 3 * segments_module.BLOCK
IDS = [0, 1, 61, 62, 4095, 4096, 5000, 8191, 8192, SIZE - 1]
Twin = dict[int, deque[tuple[int, float]]]

entry = st.tuples(
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from(IDS), min_size=1, max_size=12),
)


def rows(history: LossHistory, at_seq: int | None, ids: list[int] = IDS) -> list[list[tuple[int, float]]]:
    counts, steps, values = history.read(np.array(ids, np.int64), at_seq)
    ends = np.cumsum(counts)
    return [
        list(zip(steps[end - n : end].tolist(), values[end - n : end].tolist(), strict=True))
        for end, n in zip(ends, counts, strict=True)
    ]


def expected(twin: Twin, ids: list[int] = IDS) -> list[list[tuple[int, float]]]:
    return [list(twin.get(one, ())) for one in ids]


class Machine(RuleBasedStateMachine):
    """Checkpoints of one run, as RunLog orders them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store.open(self.folder)
        self.history = LossHistory(self.store, 1, K)
        self.seq = 1
        self.number = itertools.count()
        self.twin: Twin = {}
        self.unsaved: list[tuple[int, Any, Any]] = []
        self.saved: dict[int, Twin] = {0: {}}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    @initialize(old=st.booleans())
    def perhaps_of_an_older_program(self, old: bool) -> None:
        """Which wrote rows at each checkpoint, and no segments."""
        if old:
            before = History(self.store, 1, K)
            for _ in range(2):
                self.seq += 2
                values = np.full(len(IDS), next(self.number), np.float32)
                self.store.commit(before.merge(self.seq, np.array(IDS), 7, values))
                self.fold(7, IDS, values)
                self.saved[self.seq] = copy.deepcopy(self.twin)
            self.unsaved = []

    def fold(self, step: int, ids: list[int], values: Any) -> None:
        for one, value in zip(ids, values.tolist(), strict=True):
            self.twin.setdefault(one, deque(maxlen=K)).append((step, value))
        self.unsaved.append((step, np.array(ids, np.int64), values))

    @rule(one=entry)
    def report(self, one: tuple[int, list[int]]) -> None:
        self.seq += 1
        step, ids = one
        self.fold(step, ids, np.array([next(self.number) for _ in ids], np.float32))

    def append(self) -> list[Any]:
        return list(self.history.append(self.seq, self.unsaved, max(self.saved)))

    @rule()
    def save(self) -> None:
        self.store.commit(self.append())
        self.saved[self.seq] = copy.deepcopy(self.twin)
        self.unsaved = []

    @rule(share=st.floats(0, 1))
    def save_and_break_off(self, share: float) -> None:
        ops = self.append()
        self.store.commit(ops[: int(share * len(ops))])

    @precondition(lambda self: max(self.saved))
    @rule()
    def merge(self) -> None:
        self.store.commit(list(self.history.merge(max(self.saved), SIZE)))

    @precondition(lambda self: max(self.saved))
    @rule(share=st.floats(0, 1))
    def merge_and_break_off(self, share: float) -> None:
        ops = list(self.history.merge(max(self.saved), SIZE))
        self.store.commit(ops[: int(share * len(ops))])

    @precondition(lambda self: max(self.saved))
    @rule(data=st.data())
    def prune(self, data: st.DataObject) -> None:
        there = sorted(self.saved)[1:]
        kept = sorted({*data.draw(st.sets(st.sampled_from(there))), there[-1]})
        self.saved = {0: {}, **{seq: self.saved[seq] for seq in kept}}
        ops = list(self.history.prune(kept))
        self.store.commit(ops[: data.draw(st.integers(0, len(ops)))])
        if data.draw(st.booleans()):
            self.store.commit(list(self.history.prune(kept)))

    @rule(data=st.data())
    def go_back(self, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from(sorted(self.saved)))
        if at == 0 and min(self.saved, default=0) == 0 and len(self.saved) == 1:
            return
        self.saved = {seq: twin for seq, twin in self.saved.items() if seq <= at}
        self.store.commit(self.history.drop_after(at))
        self.twin, self.unsaved = copy.deepcopy(self.saved[at]), []
        self.seq = at + 1

    @rule(share=st.floats(0, 1))
    def sweep(self, share: float) -> None:
        ops = list(self.history.sweep(max(self.saved)))
        self.store.commit(ops[: int(share * len(ops))])

    @rule()
    def sweep_all(self) -> None:
        self.store.commit(list(self.history.sweep(max(self.saved))))
        assert list(self.history.sweep(max(self.saved))) == []

    @rule()
    def fork(self) -> None:
        at = max(self.saved)
        other = LossHistory(self.store, 2, K)
        self.store.commit([*self.history.copy_to(2, at, 1)])
        self.store.commit(list(other.append(1, self.unsaved, 0, beside=True)))
        assert rows(other, 1) == expected(self.twin)
        self.store.commit([*other.drop_after(0), *History(self.store, 2, K).drop_after(0)])
        spans = [(table, *prefix_range(u64(2))) for table in (Table.HISTORY, Table.SEGMENTS)]
        for table, start, stop in spans:
            for key in self.store.keys(table, start, stop):
                self.store.commit([Delete(table, key)])

    @invariant()
    def every_checkpoint_knows_what_was_folded_by_then(self) -> None:
        for seq, twin in self.saved.items():
            if seq:
                assert rows(self.history, seq) == expected(twin), seq
        some = [SIZE - 1, 62, 62, 7]
        assert rows(self.history, max(self.saved), some) == expected(self.saved[max(self.saved)], some)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def save(store: Store, history: LossHistory, seq: int, since: int, ids: Any, steps: int) -> None:
    values = np.arange(len(ids), dtype=np.float32)
    store.commit(list(history.append(seq, [(steps, np.asarray(ids), values)], since)))


def test_a_save_of_more_than_a_segment_holds_keeps_the_order(store: Store, monkeypatch: Any) -> None:
    monkeypatch.setattr(segments_module, "SEGMENT_LOSSES", 5)
    history = LossHistory(store, 1, K)
    entries = [(step, np.array([3, 5000]), np.array([step, -step], np.float32)) for step in range(20)]
    store.commit(list(history.append(9, entries, 0)))
    assert rows(history, 9, [5000, 3]) == [
        [(17, -17.0), (18, -18.0), (19, -19.0)],
        [(17, 17.0), (18, 18.0), (19, 19.0)],
    ]


def test_what_a_loss_costs_is_bounded_however_far_apart_the_ids_are(store: Store) -> None:
    history, size, n = LossHistory(store, 1, 8), 1_000_000, 4096
    rng, written, since = np.random.default_rng(0), 0, 0
    for seq in range(1, 60):
        ids = rng.choice(size, n, replace=False)
        ops = list(history.append(seq, [(seq, ids, np.ones(n, np.float32))], since))
        store.commit(ops)
        if history.merge_is_due(seq, size):
            merged = list(history.merge(seq, size))
            store.commit(merged)
            ops += merged
        written += sum(len(op.key) + len(op.value) for op in ops if isinstance(op, Put))
        since = seq
    assert written / (59 * n) < (1 + losses_module.MERGE_COST) * 30


@pytest.mark.parametrize(
    ("size", "n"), [(1_000_000, 1_000_000), (1_000_000, 10_000), (10**9, 5_000), (100, 7)]
)
@pytest.mark.parametrize("one_step", [False, True])
def test_what_losses_take_is_estimated_closely_and_never_too_low(
    store: Store, size: int, n: int, one_step: bool
) -> None:
    history, rng = LossHistory(store, 1, 8), np.random.default_rng(0)
    ids = [rng.integers(0, size, n) for _ in range(1 if one_step else 2)]
    entries = [(step, some, np.ones(n, np.float32)) for step, some in enumerate(ids)]
    before = store.stats().live_bytes
    store.commit(list(history.append(1, entries, 0)))
    taken, estimated = store.stats().live_bytes - before, history.bytes_of(entries, size)
    assert taken <= estimated + 3 * PAGE_BYTES
    assert estimated <= 3 * taken


def test_going_back_behind_a_merge_takes_few_ops_and_the_rest_goes_one_by_one(store: Store) -> None:
    history, size = LossHistory(store, 1, 8), 50_000
    save(store, history, 1, 0, np.arange(size), 1)
    save(store, history, 2, 1, np.arange(size), 2)
    store.commit(list(history.merge(2, size)))
    merged = len(store.keys(Table.HISTORY, *prefix_range(u64(1))))
    assert merged > 500
    back = history.drop_after(1)
    assert len(back) < 5
    store.commit(back)
    assert rows(history, 1, [7]) == [[(1, 7.0)]]
    swept = list(history.sweep(1))
    assert len(swept) >= merged
    store.commit(swept[:100])
    # Broken off there, what is left is read by nobody, and is gone when losses are merged again.
    save(store, history, 3, 1, np.array([7]), 3)
    assert rows(history, 3, [6, 7]) == [[(1, 6.0)], [(1, 7.0), (3, 0.0)]]
    store.commit(list(history.merge(3, size)))
    assert rows(history, 3, [6, 7]) == [[(1, 6.0)], [(1, 7.0), (3, 0.0)]]
    assert len(store.keys(Table.HISTORY, *prefix_range(u64(1)))) == merged


def test_segments_are_merged_when_that_pays(store: Store) -> None:
    history = LossHistory(store, 1, 8)
    save(store, history, 1, 0, np.arange(0, 1_000_000, 100), 1)
    assert not history.merge_is_due(1, 1_000_000)
    save(store, history, 2, 1, np.arange(60_000), 2)
    assert not history.merge_is_due(2, 1_000_000)
    assert history.merge_is_due(2, 20_000)
    store.commit(list(history.merge(2, 1_000_000)))
    assert not history.merge_is_due(2, 20_000)


def test_a_flipped_bit_is_reported_with_its_ids_and_never_returned(store: Store, flip: Any) -> None:
    history = LossHistory(store, 1, K)
    save(store, history, 2, 0, [70, 4096 + 70], 1)
    keys = [key for key in store.keys(Table.SEGMENTS, *prefix_range(u64(1))) if len(key) == 22]
    assert len(keys) == 2
    before = rows(history, 2)
    for bit in range(0, 8 * len(store.get(Table.SEGMENTS, keys[1]) or b""), 11):
        flip(Table.SEGMENTS, keys[1], bit)
        with pytest.raises(RecordDamaged, match=r"losses of ids 4096\.\.8191"):
            history.read(np.array([4097]), 2)
        with pytest.raises(RecordDamaged, match=r"losses of ids 4096\.\.8191"):
            list(history.merge(2, SIZE))
        flip(Table.SEGMENTS, keys[1], bit)
    assert rows(history, 2) == before


def test_bad_losses_are_refused(store: Store) -> None:
    history = LossHistory(store, 1, K)
    with pytest.raises(ValueError, match="-4"):
        save(store, history, 1, 0, [-4], 1)
    with pytest.raises(ValueError, match="4294967296"):
        save(store, history, 1, 0, [4], 2**32)
    with pytest.raises(ValueError, match="-1"):
        history.read(np.array([-1]), 1)


def test_a_size_of_nothing_keeps_nothing(store: Store) -> None:
    history = LossHistory(store, 1, 0)
    save(store, history, 1, 0, [4], 1)
    assert store.keys(Table.SEGMENTS, *prefix_range(u64(1))) == []
    assert rows(history, 1, [4, 5]) == [[], []]


def test_what_is_merged_and_removed_while_it_is_read_is_read_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = LossHistory(store, 1, K)
    ids = np.array(IDS)
    for seq, before in ((5, 0), (9, 5)):
        values = np.full(len(ids), seq, np.float32)
        store.commit(list(history.append(seq, [(seq, ids, values)], before)))
    wanted = rows(history, 9)
    assert wanted[0] == [(5, 5.0), (9, 9.0)]
    last_of = Store.last_of

    def merged_before(self: Store, table: Table, ranges: Any) -> Any:
        monkeypatch.setattr(Store, "last_of", last_of)
        store.commit(list(history.merge(9, SIZE)))
        store.commit(list(history.prune([9])))
        return last_of(self, table, ranges)

    monkeypatch.setattr(Store, "last_of", merged_before)
    assert rows(history, 9) == wanted
    assert history._segments.listing().segments == []
