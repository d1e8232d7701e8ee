"""Reading a journal beside its writer: what is read is one past of the run, whole, or the reader is told."""

import itertools

import numpy as np
import pytest

from steelyard_server.core.events import AttemptBegan, BatchDrawn, Bookmarked, StepClosed
from steelyard_server.history.errors import RecordDamaged
from steelyard_server.history.journal import Journal
from steelyard_server.history.ops import DeleteRange, Put, Table, prefix_range, u64
from steelyard_server.history.store import Store
from steelyard_server.runs import reader as reader_module
from steelyard_server.runs.errors import Superseded, Unready
from steelyard_server.runs.reader import PAGE_BYTES, JournalReader

RUN = 3


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path)
    yield store
    store.close()


@pytest.fixture
def small_pages(monkeypatch):
    monkeypatch.setattr(reader_module, "PAGE_RECORDS", 3)


def drawn(step, *, seed=0, size=4):
    ids = np.random.default_rng([seed, step]).integers(0, 1000, size)
    return BatchDrawn(step, ids, None, 0.001, step, step + seed)


def filled(store, steps, *, size=4):
    """Records 2t (the batch of step t) and 2t+1 (its closing)."""
    journal = Journal(store, RUN)
    for step in range(steps):
        store.commit(journal.append([drawn(step, size=size), StepClosed(step, "owner")])[0])
    return journal


def opened(store):
    return JournalReader("r", Journal(store, RUN))


def read(reader, from_step=None, to_step=None):
    return [seq for page in reader.pages(*reader.span(from_step, to_step)) for seq, _ in page]


def damage(store, seq):
    value = bytearray(store.get(Table.JOURNAL, u64(RUN, seq)) or b"")
    value[-1] ^= 1
    store.commit([Put(Table.JOURNAL, u64(RUN, seq), bytes(value))])


@pytest.mark.usefixtures("small_pages")
def test_a_span_begins_with_one_draw_and_ends_before_another(store):
    filled(store, 10)
    reader = opened(store)
    assert read(reader) == list(range(20))
    assert read(reader, 0, 0) == []
    assert read(reader, 3) == list(range(6, 20))
    assert read(reader, 3, 5) == [6, 7, 8, 9]
    assert read(reader, None, 2) == [0, 1, 2, 3]
    assert read(reader, 9, 10) == read(reader, 9, 1 << 40) == [18, 19]


def test_a_step_that_is_not_there_is_refused_with_those_that_are(store):
    journal = filled(store, 10)
    reader = opened(store)
    for step in (10, 11, (1 << 64) - 1):
        with pytest.raises(Unready, match=rf"which has 0\.\.9; got {step}, which is not drawn yet"):
            reader.span(step, None)
    store.commit(journal.prune(7))
    reader = opened(store)
    assert read(reader) == list(range(7, 20))
    with pytest.raises(Unready, match=r"which has 4\.\.9; got 3, which is no longer kept"):
        reader.span(3, None)
    with pytest.raises(Unready, match="got 2, which is no longer kept"):
        reader.span(None, 2)


def test_a_run_that_has_drawn_nothing_has_what_made_it(store):
    journal = Journal(store, RUN)
    store.commit(journal.append([Bookmarked("a", 0)])[0])
    reader = opened(store)
    assert read(reader) == read(reader, None, 0) == [0]
    with pytest.raises(Unready, match="which has none; got 0, which is not drawn yet"):
        reader.span(0, None)


def test_an_island_of_the_journal_is_read_within_its_shores(store):
    journal = filled(store, 20)
    store.commit(journal.prune(30, [(6, 10)]))
    reader = opened(store)
    assert read(reader) == list(range(30, 40))
    assert read(reader, 3, 4) == [6, 7]
    assert [seq for page in reader.pages(reader.place_of(3)) for seq, _ in page] == [6, 7, 8, 9]
    between = r"between which nothing is pruned: the journal of run 'r' has all of 15\.\.19; got"
    for span, came in (((3, None), "from_step 3 and to_step None"), ((4, 16), "from_step 4 and to_step 16")):
        with pytest.raises(Unready, match=f"{between} {came}"):
            reader.span(*span)
    with pytest.raises(Unready, match=f"{between} from_step None and to_step 4"):
        reader.span(None, 4)
    with pytest.raises(Unready, match="got 5, which is no longer kept"):
        reader.span(5, None)


@pytest.mark.usefixtures("small_pages")
def test_an_island_that_goes_while_it_is_read_is_noticed(store):
    journal = filled(store, 20)
    store.commit(journal.prune(30, [(4, 14)]))
    reader = opened(store)
    pages = reader.pages(reader.place_of(2))
    assert [seq for seq, _ in next(pages)] == [4, 5, 6]
    store.commit(journal.prune(30))
    with pytest.raises(Superseded, match="pruned"):
        next(pages)


def test_what_becomes_durable_later_is_not_read(store):
    journal = filled(store, 4)
    reader = opened(store)
    store.commit(journal.append([drawn(4)])[0])
    assert read(reader) == list(range(8))
    with pytest.raises(Unready, match="not drawn yet"):
        reader.span(4, None)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("at", range(0, 20, 3))
def test_a_run_that_goes_back_while_it_is_read_is_noticed_wherever_it_was_cut(store, at):
    journal = filled(store, 10)
    reader = opened(store)
    pages = reader.pages(*reader.span(None, None))
    read_before = next(pages)
    assert [seq for seq, _ in read_before] == [0, 1, 2]
    # As many records as were cut, and more, so that no number is missing.
    again = [AttemptBegan("b", 1, at // 2), *(Bookmarked(f"b{n}", 0) for n in range(20 - at))]
    store.commit(journal.cut(at, again))
    with pytest.raises(Superseded, match="went back"):
        list(pages)


@pytest.mark.usefixtures("small_pages")
def test_a_run_that_came_again_to_what_it_was_is_read_on(store):
    """A rewind and the same training again make the same records: nobody can tell, and nobody need be told."""
    journal = filled(store, 10)
    reader = opened(store)
    pages = reader.pages(*reader.span(None, None))
    seen = next(pages)
    store.commit(journal.cut(2, []))
    for step in range(1, 10):
        store.commit(journal.append([drawn(step), StepClosed(step, "owner")])[0])
    seen += itertools.chain.from_iterable(pages)
    assert [seq for seq, _ in seen] == list(range(20))


@pytest.mark.usefixtures("small_pages")
def test_a_moment_between_is_not_taken_for_damage(store, monkeypatch):
    """The page is read while the records are gone, and checked when they are there again."""
    journal = filled(store, 10)
    reader = opened(store)
    pages = reader.pages(*reader.span(None, None))
    seen = next(pages)
    real, cuts = reader._journal.read, iter([True])

    def read_while_cut(*args, **named):
        cut = next(cuts, False)
        if cut:
            store.commit(journal.cut(2, []))
        try:
            yield from real(*args, **named)
        finally:
            if cut:
                for step in range(1, 10):
                    store.commit(journal.append([drawn(step), StepClosed(step, "owner")])[0])

    monkeypatch.setattr(reader._journal, "read", read_while_cut)
    seen += itertools.chain.from_iterable(pages)
    assert [seq for seq, _ in seen] == list(range(20))


@pytest.mark.usefixtures("small_pages")
def test_pruning_what_is_still_to_be_read_is_noticed_and_what_was_read_is_not_missed(store):
    journal = filled(store, 10)
    reader = opened(store)
    pages = reader.pages(*reader.span(None, None))
    next(pages)
    store.commit(journal.prune(2))
    assert [seq for seq, _ in next(pages)] == [3, 4, 5]
    store.commit(journal.prune(8))
    with pytest.raises(Superseded, match="pruned"):
        next(pages)


@pytest.mark.usefixtures("small_pages")
def test_a_run_that_is_deleted_is_noticed_and_has_no_reader_any_more(store):
    filled(store, 10)
    reader = opened(store)
    pages = reader.pages(*reader.span(None, None))
    next(pages)
    store.commit([DeleteRange(table, *prefix_range(u64(RUN))) for table in (Table.JOURNAL, Table.STEPS)])
    with pytest.raises(Superseded):
        next(pages)
    with pytest.raises(Superseded):
        opened(store)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("bad", [0, 1, 2, 3, 7, 18])
def test_what_precedes_a_damaged_record_is_read_and_then_its_place_is_told(store, bad):
    filled(store, 10)
    damage(store, bad)
    reader = opened(store)
    seen: list[int] = []
    with pytest.raises(RecordDamaged, match=f"record {bad}"):
        seen.extend(seq for page in reader.pages(0) for seq, _ in page)
    assert seen == list(range(bad))


def test_a_damaged_record_behind_the_span_is_none_of_its_business(store):
    filled(store, 10)
    damage(store, 15)
    assert read(opened(store), 1, 7) == list(range(2, 14))


def test_a_page_is_bounded_by_its_bytes(store):
    size = (PAGE_BYTES // 4) // 2  # ids of two bytes
    filled(store, 8, size=size)
    pages = list(opened(store).pages(0))
    assert [seq for page in pages for seq, _ in page] == list(range(16))
    for page in pages:
        total = sum(2 * len(event.ids) for _, event in page if isinstance(event, BatchDrawn))
        assert total <= PAGE_BYTES
    assert len(pages) < 8
