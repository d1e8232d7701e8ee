"""What of a run's past is worth its space."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

Checkpoint = tuple[int, int]
"""(seq, step): the state before journal record seq, when `step` was next."""

Span = tuple[int, int]
"""Journal records first..stop-1."""


@dataclass(frozen=True, slots=True)
class BookmarkCost:
    """`journal_bytes` are kept for bookmarks of this step and for none of an earlier step, so that they add up."""

    name: str
    step: int
    journal_bytes: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a run's past: every step from `oldest_step` on, with its journal; and what bookmarks hold."""

    oldest_step: int
    journal_records: int
    journal_bytes: int
    checkpoints: int
    bookmarks: Sequence[BookmarkCost]


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept, and what it takes in the store: chunks that several checkpoints share count once."""

    kept: Kept
    checkpoint_bytes: int
    history_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to keep: the checkpoints at these records, the journal from `start` on, and for each bookmarked step that
    begins before `start` an island: the records that its state is replayed from, and then those in which reports of
    earlier steps may lie."""

    checkpoints: Sequence[int]
    start: int
    islands: Mapping[int, Span]

    def own(self) -> dict[int, Span]:
        """Of each island what neither one of an earlier step has nor the journal from `start` on; it may be empty."""
        own: dict[int, Span] = {}
        end = 0
        for step, (first, stop) in sorted(self.islands.items()):
            own[step] = max(first, end), min(stop, self.start)
            end = max(end, stop)
        return own


def plan(
    checkpoints: Sequence[Checkpoint],
    first: int,
    floor: int,
    bookmarked: Iterable[int],
    end_of: Callable[[int, int], int],
) -> Plan:
    """What to keep of a journal that is whole from record `first` on, so that every step from `floor` on and every
    bookmarked one can be returned to. All `checkpoints` are given, in order.

    `end_of(step, base)`: the first record that going back to `step` does not need, where it begins at record `base`.
    """
    whole = [checkpoint for checkpoint in checkpoints if checkpoint[0] >= first]
    keep = set(worth_keeping(whole, floor))
    start = min(keep) if whole and whole[0][1] <= floor else first
    islands = {}
    for step in sorted(set(bookmarked)):
        base = _base(checkpoints, step)
        if base is not None:
            keep.add(base)
        if (base or 0) < start:
            islands[step] = (base or 0, end_of(step, base or 0))
    return Plan(sorted(keep), start, islands)


def worth_keeping(checkpoints: Sequence[Checkpoint], floor: int) -> list[int]:
    """The records (seq) of the checkpoints to keep where no step is bookmarked.

    Kept are the newest one; the newest at or below step `floor`, from which everything retained can be replayed; and
    of those between, from new to old, each that the next older one is too far away to stand in for: more than twice
    as far back as the last one kept. So their number grows with the logarithm of what is retained, and a rewind
    replays at most about as much as it goes back. Both hold however often this is asked as checkpoints are added.
    """
    if not checkpoints:
        return []
    below = [number for number, (_, step) in enumerate(checkpoints) if step <= floor]
    anchor = below[-1] if below else 0
    newest = len(checkpoints) - 1
    keep = {anchor, newest}
    reach = 2
    for number in range(newest - 1, anchor, -1):
        if checkpoints[newest][1] - checkpoints[number - 1][1] > reach:
            keep.add(number)
            reach = 2 * max(1, checkpoints[newest][1] - checkpoints[number][1])
    return sorted(checkpoints[number][0] for number in keep)


def _base(checkpoints: Sequence[Checkpoint], step: int) -> int | None:
    """The record of the newest checkpoint from which `step` can be replayed."""
    place = bisect_right(checkpoints, step, key=lambda checkpoint: checkpoint[1])
    return checkpoints[place - 1][0] if place else None
