"""The journal: order, chain, cutting, pruning, and that damage is reported and never returned."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from steelyard_server.core.events import BatchDrawn, Bookmarked, Event, StepClosed
from steelyard_server.history.errors import RecordDamaged, StoreFailed
from steelyard_server.history.journal import NO_CHAIN, PAGE_RECORDS, Journal
from steelyard_server.history.ops import Delete, Put, Table, u64
from steelyard_server.history.store import Store

RUN = 7
Flip = Callable[[Table, bytes, int], None]


def drawn(step: int) -> BatchDrawn:
    return BatchDrawn(step, np.arange(4) + step, None, 0.25, step, step)


def filled(store: Store, steps: int, run_id: int = RUN) -> Journal:
    """Records 2t (the batch of step t) and 2t+1 (its closing)."""
    journal = Journal(store, run_id)
    for step in range(steps):
        ops, first = journal.append([drawn(step), StepClosed(step, "owner")])
        assert first == 2 * step
        store.commit(ops)
    return journal


def steps_read(events: list[tuple[int, Event]]) -> list[tuple[int, int]]:
    return [(seq, getattr(event, "step", -1)) for seq, event in events]


def test_events_come_back_in_order_over_many_pages(store: Store) -> None:
    steps = PAGE_RECORDS + 3
    journal = filled(store, steps)
    assert steps_read(list(journal.read(0))) == [(seq, seq // 2) for seq in range(2 * steps)]
    assert steps_read(list(journal.read(5, 8))) == [(5, 2), (6, 3), (7, 3)]
    assert list(journal.read(2 * steps)) == []


def test_journals_of_neighbouring_runs_do_not_meet(store: Store) -> None:
    one, two = filled(store, 3, 1), filled(store, 2, 2)
    assert (one.next_seq, two.next_seq) == (6, 4)
    assert len(list(one.read(0))) == 6
    store.commit(one.cut(0, []))
    assert len(list(two.read(0))) == 4
    assert two.seq_of_step(1) == 2
    assert one.seq_of_step(1) is None


def test_a_journal_opened_again_goes_on_where_it_was(store: Store) -> None:
    journal = filled(store, 3)
    again = Journal(store, RUN)
    assert (again.next_seq, again.chain, again.total) == (journal.next_seq, journal.chain, journal.total)
    store.commit(again.append([drawn(3)])[0])
    assert len(list(again.read(0))) == 7


def test_the_index_leads_to_what_was_drawn(store: Store) -> None:
    journal = filled(store, 5)
    assert journal.seq_of_step(3) == 6
    batch = journal.drawn(3)
    assert batch is not None
    assert batch.ids.tolist() == [3, 4, 5, 6]
    assert journal.drawn(5) is None
    assert (journal.first_seq(), journal.first_step()) == (0, 0)


@pytest.mark.parametrize("seq", [0, 1, 2, 5, 9, 10])
def test_a_cut_replaces_everything_from_there_in_one_write(store: Store, seq: int) -> None:
    journal = filled(store, 5)
    chain = journal.chain_at(seq)
    ops = journal.cut(seq, [Bookmarked("b", seq)])
    assert journal.next_seq == seq + 1
    store.commit(ops)
    events = list(journal.read(0))
    assert steps_read(events[:-1]) == [(i, i // 2) for i in range(seq)]
    assert events[-1] == (seq, Bookmarked("b", seq))
    assert list(journal.read(seq, chain=chain)) == events[-1:]
    assert [journal.drawn(step) is not None for step in range(5)] == [2 * step < seq for step in range(5)]
    assert journal.bytes_from(0) == journal.total == _stored_bytes(store)
    store.commit(journal.append([drawn(9)])[0])
    assert Journal(store, RUN).chain == journal.chain


def test_a_cut_heals_a_journal_that_is_damaged_after_it(store: Store, flip: Flip) -> None:
    journal = filled(store, 5)
    flip(Table.JOURNAL, u64(RUN, 6), 300)
    store.commit(journal.cut(6, []))
    assert len(list(Journal(store, RUN).read(0))) == 6


def test_a_cut_above_the_end_is_refused(store: Store) -> None:
    journal = filled(store, 2)
    with pytest.raises(ValueError, match="up to 3; it cannot be cut at 5"):
        journal.cut(5, [])
    assert journal.next_seq == 4


def test_a_pruned_journal_reads_from_where_it_begins(store: Store) -> None:
    journal = filled(store, 5)
    chain = journal.chain_at(4)
    store.commit(journal.prune(4))
    assert (journal.first_seq(), journal.first_step()) == (4, 2)
    assert journal.drawn(1) is None
    assert steps_read(list(journal.read(4))) == steps_read(list(journal.read(4, chain=chain)))
    assert journal.bytes_from(0) == journal.bytes_from(4) == _stored_bytes(store)
    with pytest.raises(RecordDamaged, match="record 3: it is missing; record 4 comes next"):
        list(journal.read(3))
    store.commit(journal.cut(4, [], chain=chain))
    assert (journal.next_seq, journal.chain) == (4, chain)


def test_pruning_everything_keeps_the_last_record_so_that_numbers_go_on(store: Store) -> None:
    journal = filled(store, 3)
    store.commit(journal.prune(10**9))
    assert Journal(store, RUN).next_seq == 6


def test_what_lies_between_islands_is_pruned_and_a_reader_ends_there(store: Store) -> None:
    journal = filled(store, 10)
    store.commit(journal.prune(14, [(2, 5), (4, 6), (9, 10)]))
    again = Journal(store, RUN)
    for one in (journal, again):
        assert one.holes == [(6, 9), (10, 14)]
        assert (one.lowest_seq(), one.first_seq(), one.first_step(), one.next_step()) == (2, 14, 7, 10)
        assert [one.piece_end(seq) for seq in (2, 5, 9, 14, 19)] == [6, 6, 10, 20, 20]
    assert steps_read(list(again.read(2))) == [(2, 1), (3, 1), (4, 2), (5, 2)]
    assert steps_read(list(again.read(9))) == [(9, 4)]
    assert [again.drawn(step) is not None for step in range(10)] == [0, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    assert again.bytes_from(0) == _stored_bytes(store)
    assert again.bytes_from(14) == again.bytes_between(14, 20) == again.bytes_from(10)
    assert again.bytes_from(4) == again.bytes_between(4, 6) + again.bytes_from(9)
    with pytest.raises(RecordDamaged, match=r"record 6 .*: it was pruned, as all up to record 8 were"):
        list(again.read(2, 12))
    for start in (6, 8):
        with pytest.raises(RecordDamaged, match=rf"record {start}: it was pruned"):
            list(again.read(start))


def test_a_record_that_is_missing_at_the_edge_of_a_hole_is_not_taken_for_pruned(store: Store) -> None:
    journal = filled(store, 10)
    store.commit(journal.prune(14, [(2, 6)]))
    for lost, start in ((5, 2), (14, 14)):
        value = store.get(Table.JOURNAL, u64(RUN, lost))
        assert value is not None
        store.commit([Delete(Table.JOURNAL, u64(RUN, lost))])
        with pytest.raises(RecordDamaged, match=rf"record {lost}\b.*: it is missing"):
            list(journal.read(start))
        store.commit([Put(Table.JOURNAL, u64(RUN, lost), value)])


def test_pruning_again_moves_the_holes_and_writes_only_what_changed(store: Store) -> None:
    journal = filled(store, 10)
    store.commit(journal.prune(14, [(2, 6), (9, 10)]))
    assert len(journal.prune(14, [(2, 6), (9, 10)])) <= 2, (
        "only what might be below the first record is looked at"
    )
    store.commit(journal.prune(16, [(2, 6)]))
    assert Journal(store, RUN).holes == journal.holes == [(6, 16)]
    assert [seq for seq in range(20) if store.get(Table.JOURNAL, u64(RUN, seq))] == [
        *range(2, 6),
        *range(16, 20),
    ]
    store.commit(journal.prune(16))
    assert Journal(store, RUN).holes == journal.holes == []
    assert journal.lowest_seq() == journal.first_seq() == 16


@pytest.mark.parametrize(("seq", "left"), [(4, []), (9, [(6, 9)]), (10, [(6, 9)]), (15, [(6, 9), (10, 14)])])
def test_a_cut_takes_the_holes_above_it_and_leaves_those_below(
    store: Store, seq: int, left: list[tuple[int, int]]
) -> None:
    journal = filled(store, 10)
    chains = {at: journal.chain_at(at) for at in (4, 9, 10, 15)}
    store.commit(journal.prune(14, [(2, 6), (9, 10)]))
    store.commit(journal.cut(seq, [StepClosed(1, "owner")], chain=chains[seq]))
    again = Journal(store, RUN)
    assert again.holes == journal.holes == left
    assert (again.next_seq, again.chain, again.total) == (seq + 1, journal.chain, journal.total)
    assert again.bytes_from(0) == _stored_bytes(store)
    assert steps_read(list(again.read(2)))[0] == (2, 1)
    first = again.first_seq()
    assert len(list(again.read(first))) == seq + 1 - first


def test_pruning_up_to_the_end_beside_an_island_keeps_the_last_record(store: Store) -> None:
    journal = filled(store, 5)
    store.commit(journal.prune(10, [(2, 4)]))
    again = Journal(store, RUN)
    assert (again.next_seq, again.holes, again.first_seq()) == (10, [(4, 9)], 9)


def test_any_flipped_bit_is_reported_with_its_place_and_the_record_is_not_returned(
    store: Store, flip: Flip
) -> None:
    journal = filled(store, 3)
    key = u64(RUN, 2)
    size = len(store.get(Table.JOURNAL, key) or b"")
    for bit in range(0, 8 * size, 3):
        flip(Table.JOURNAL, key, bit)
        returned: list[tuple[int, Event]] = []
        with pytest.raises(RecordDamaged, match=r"run 7, journal record 2 \(after the batch of step 0\)"):
            returned.extend(journal.read(0))  # extend keeps what came before the error
        assert all(seq < 2 for seq, _ in returned)
        with pytest.raises(RecordDamaged, match=r"journal record 2 \(step 1\)"):
            journal.drawn(1)
        flip(Table.JOURNAL, key, bit)
    assert len(list(journal.read(0))) == 6


def test_a_missing_record_is_reported(store: Store) -> None:
    journal = filled(store, 3)
    store.commit([Delete(Table.JOURNAL, u64(RUN, 3))])
    with pytest.raises(
        RecordDamaged, match=r"record 3 \(after the batch of step 1\): it is missing; record 4"
    ):
        list(journal.read(0))


def test_a_missing_end_is_reported_to_who_knows_where_it_was(store: Store) -> None:
    journal = filled(store, 3)
    store.commit([Delete(Table.JOURNAL, u64(RUN, 5))])
    with pytest.raises(RecordDamaged, match=r"record 5 .*records up to 5 were expected"):
        list(journal.read(0, 6))


def test_a_good_record_of_another_history_breaks_the_chain(store: Store) -> None:
    journal = filled(store, 3)
    other = Journal(store, 8)
    store.commit(other.append([StepClosed(0, "timeout")] * 4)[0])
    stranger = store.get(Table.JOURNAL, u64(8, 3))
    assert stranger is not None
    store.commit([Put(Table.JOURNAL, u64(RUN, 3), stranger)])
    with pytest.raises(RecordDamaged, match="record 3 .*does not continue the hash chain"):
        list(journal.read(2))


def test_a_wrong_chain_from_a_checkpoint_is_reported(store: Store) -> None:
    journal = filled(store, 2)
    with pytest.raises(RecordDamaged, match="record 2: it does not continue"):
        list(journal.read(2, chain=NO_CHAIN))


def test_an_event_that_cannot_be_stored_moves_nothing(store: Store) -> None:
    journal = filled(store, 1)
    before = (journal.next_seq, journal.chain, journal.total)
    with pytest.raises(ValueError):
        journal.append([StepClosed(0, "owner"), StepClosed(-1, "owner")])
    with pytest.raises(ValueError):
        journal.cut(0, [StepClosed(-1, "owner")])
    assert (journal.next_seq, journal.chain, journal.total) == before


def test_what_is_appended_after_a_lost_write_is_refused_until_the_journal_is_reloaded(store: Store) -> None:
    """A full map loses record 4; without the fence record 5 would follow 3."""
    journal = filled(store, 2)
    lost, later = journal.append([StepClosed(4, "owner")])[0], journal.append([StepClosed(5, "owner")])[0]
    store._generation += 1  # as a lost write would; the outcome of a real one is tested with full disks
    for ops in (lost, later):
        with pytest.raises(StoreFailed, match="reloaded"):
            store.commit(ops)
    journal.reload()
    assert journal.next_seq == 4
    store.commit(journal.append([StepClosed(6, "owner")])[0])
    assert steps_read(list(journal.read(3))) == [(3, 1), (4, 6)]


def _stored_bytes(store: Store) -> int:
    return sum(len(value) for _, value in store.scan(Table.JOURNAL, u64(RUN), u64(RUN + 1)))
