"""Which checkpoints are worth their space."""

from __future__ import annotations

from collections.abc import Sequence


def worth_keeping(checkpoints: Sequence[tuple[int, int]], floor: int) -> list[int]:
    """The records (seq) of the checkpoints to keep, of (seq, step) pairs in order.

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
