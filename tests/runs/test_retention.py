"""Which checkpoints stay, as they come one after the other for a long time."""

from __future__ import annotations

import itertools

import pytest

from steelyard_server.runs.retention import Plan, plan, worth_keeping


@pytest.mark.parametrize("gap", [1, 7, 100])
def test_a_rewind_replays_about_as_much_as_it_goes_back_and_the_kept_are_few(gap: int) -> None:
    kept: list[tuple[int, int]] = []
    for seq in range(3000):
        kept.append((seq, seq * gap))
        keep = worth_keeping(kept, 0)
        assert keep == sorted(set(keep))
        kept = [checkpoint for checkpoint in kept if checkpoint[0] in keep]
        newest = seq * gap
        back = [newest - step for _, step in reversed(kept)]
        assert kept[0] == (0, 0)
        assert back[0] == 0
        for nearer, further in itertools.pairwise(back):
            # A rewind to just beyond `nearer` replays all from `further`.
            assert further - nearer <= max(nearer, 2 * gap)
    assert len(kept) <= 26


def test_the_newest_at_or_below_the_floor_is_the_oldest_kept() -> None:
    checkpoints = [(10, 0), (20, 5), (30, 9), (40, 12), (50, 20)]
    assert worth_keeping(checkpoints, 10)[0] == 30
    assert worth_keeping(checkpoints, 9)[0] == 30
    assert worth_keeping(checkpoints, 10**6) == [50]
    # None is below the floor after a fork: then everything from the first on counts.
    assert worth_keeping(checkpoints[3:], 3) == [40, 50]


def test_the_only_one_stays_and_of_none_there_is_none() -> None:
    assert worth_keeping([], 0) == []
    assert worth_keeping([(3, 1)], 0) == [3]


def kept(
    checkpoints: list[tuple[int, int]], first: int, floor: int, bookmarked: list[int], window: int = 5
) -> Plan:
    """The plan for a journal with one record a step, so that records and steps have the same numbers."""
    return plan(checkpoints, first, floor, bookmarked, lambda step, base: step + window)


def test_a_bookmark_below_what_is_retained_gets_an_island_from_its_checkpoint_to_its_window() -> None:
    checkpoints = [(10, 10), (20, 20), (30, 30), (50, 50), (60, 60)]
    wanted = kept(checkpoints, 0, 55, [3, 22, 30, 58])
    assert wanted.start == 50
    assert wanted.islands == {3: (0, 8), 22: (20, 27), 30: (30, 35)}
    # Also those that going back to a bookmark begins with, below the floor or not.
    assert wanted.checkpoints == [20, 30, 50, 60]


def test_without_bookmarks_the_journal_begins_at_the_checkpoint_below_the_floor() -> None:
    checkpoints = [(10, 10), (20, 20), (30, 30)]
    assert kept(checkpoints, 0, 25, []) == Plan([20, 30], 20, {})
    assert kept(checkpoints, 0, 5, []).start == 0
    assert kept([], 0, 5, [1]) == Plan([], 0, {})


def test_what_is_whole_stays_whole_where_a_run_went_back_and_the_floor_with_it() -> None:
    """Of the checkpoints below record 40 only that of an island is left, and it must not be taken for the beginning."""
    wanted = kept([(10, 10), (40, 40), (60, 60)], 40, 30, [12])
    assert (wanted.start, wanted.islands) == (40, {12: (10, 17)})
    assert wanted.checkpoints == [10, 40, 60]


def test_what_several_bookmarks_hold_is_the_cost_of_the_first() -> None:
    checkpoints = [(10, 10), (20, 20), (40, 40), (60, 60)]
    own = kept(checkpoints, 0, 60, [12, 21, 23, 57]).own()
    assert own == {12: (10, 17), 21: (20, 26), 23: (26, 28), 57: (40, 60)}


def test_side_by_side_bookmarks_add_their_ends_alone() -> None:
    own = kept([(10, 10), (60, 60)], 0, 60, [20, 21, 22]).own()
    spans = {step: max(0, stop - first) for step, (first, stop) in own.items()}
    assert spans == {20: 15, 21: 1, 22: 1}
