"""Which checkpoints stay, as they come one after the other for a long time."""

from __future__ import annotations

import itertools

import pytest

from steelyard_server.runs.retention import worth_keeping


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
