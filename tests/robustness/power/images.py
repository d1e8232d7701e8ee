"""The images that a power cut may leave: at every sync, of what it was to make certain, none, all, and parts.

A cut before a sync returned covers every cut since the sync before it: what was written later may have been lost.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.robustness.power.disk import Disk, Kept
from tests.robustness.power.trace import Event, Synced, Told, Truncated, Wrote

SECTOR = 512
PAGE = 4096
RANDOM = ("random", "torn")
"""The kinds of which another seed gives others."""
Choice = tuple[int, tuple[Kept, ...]]


@dataclass(frozen=True, slots=True)
class Image:
    """`at`: the number of the event during which the power went."""

    at: int
    kind: str
    files: dict[str, bytes]


def images(
    events: Sequence[Event], seed: int, per_cut: int | None, *, kinds: tuple[str, ...] = ("",)
) -> Iterator[Image]:
    """Those of a whole recording, each image of a cut once. `per_cut`: at most so many of each cut, chosen by the seed.
    `kinds`: how the names begin of those that are wanted."""
    disk, chance = Disk(), random.Random(seed)
    for at, event in enumerate([*events, None]):
        through = isinstance(event, Wrote) and event.through
        if through:
            assert event is not None
            disk.take(event, through=False)
        if event is None or through or isinstance(event, Synced):
            found = {key: kind for key, kind in _choices(disk, chance).items() if kind.startswith(kinds)}
            wanted = list(found)
            if per_cut is not None and len(wanted) > per_cut:
                wanted = chance.sample(wanted, per_cut)
            for choice in wanted:
                yield Image(at, found[choice], disk.image(*choice))
        if through:
            disk.finish_write()
        elif event is not None and not isinstance(event, Told):
            disk.take(event)


def _choices(disk: Disk, chance: random.Random) -> dict[Choice, str]:
    """Every choice that is tried, with its kind; of choices that are equal, the first."""
    changes, names = disk.uncertain(), disk.namings
    whole: tuple[Kept, ...] = tuple(((0, _length(change)),) for change in changes)
    nothing: tuple[Kept, ...] = tuple(() for _ in changes)
    count = len(changes)
    found: dict[Choice, str] = {}

    def add(kind: str, namings: int, kept: Sequence[Kept]) -> None:
        found.setdefault((namings, tuple(tuple(ranges) for ranges in kept)), kind)

    add("none", 0, nothing)
    add("all", names, whole)
    for namings in range(names + 1):
        add("names only", namings, nothing)
        add("names late", namings, whole)
    for number in range(count):
        add("prefix", names, whole[:number] + nothing[number:])
        add("suffix", names, nothing[:number] + whole[number:])
        add("drop one", names, (*whole[:number], (), *whole[number + 1 :]))
        add("only one", names, (*nothing[:number], whole[number], *nothing[number + 1 :]))
        for cut in _tears(changes[number], chance):
            add("torn", names, (*whole[:number], cut, *nothing[number + 1 :]))
            add("torn, rest whole", names, (*whole[:number], cut, *whole[number + 1 :]))
    add("length only", names, [((_length(change),) * 2,) for change in changes])
    for _ in range(min(6, 2**count)):
        add("random writes", names, [chance.choice((kept, ())) for kept in whole])
        add("random pages", names, [_parts(change, PAGE, chance) for change in changes])
        add("random sectors", names, [_parts(change, SECTOR, chance) for change in changes])
    return found


def _length(change: Wrote | Truncated) -> int:
    return len(change.data) if isinstance(change, Wrote) else 1


def _tears(change: Wrote | Truncated, chance: random.Random) -> list[Kept]:
    """Its beginning and its end, cut between two sectors."""
    borders = _borders(change, SECTOR)[1:-1]
    if not borders:
        return []
    at, size = chance.choice(borders), _length(change)
    return [((0, at),), ((at, size),), ((0, borders[0]),), ((borders[-1], size),)]


def _parts(change: Wrote | Truncated, size: int, chance: random.Random) -> Kept:
    borders = _borders(change, size)
    return [part for part in itertools.pairwise(borders) if chance.random() < 0.5]


def _borders(change: Wrote | Truncated, size: int) -> list[int]:
    """Where parts of `size` bytes of the disk begin and end within the change, both ends included."""
    length = _length(change)
    if isinstance(change, Truncated):
        return [0, length]
    first = size - change.offset % size
    return [0, *range(first, length, size), length]
