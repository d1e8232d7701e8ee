"""Which checkpoints are worth their space."""

from __future__ import annotations

from collections.abc import Sequence


def worth_keeping(checkpoints: Sequence[tuple[int, int]], floor: int) -> list[int]:
    """The records (seq) of the checkpoints to keep, of (seq, step) pairs in order.

    Kept are the newest one; the newest at or below step `floor`, from which everything retained can be replayed; and
    between the two those at growing distances, so that their number is the logarithm of what is retained and a rewind
    replays at most about as much as it goes back.
    """
    if not checkpoints:
        return []
    below = [number for number, (_, step) in enumerate(checkpoints) if step <= floor]
    anchor = below[-1] if below else 0
    keep = {anchor, len(checkpoints) - 1}
    newest_step = checkpoints[-1][1]
    reach = 1
    for number in range(len(checkpoints) - 1, anchor, -1):
        if newest_step - checkpoints[number][1] >= reach:
            keep.add(number)
            reach = 2 * max(1, newest_step - checkpoints[number][1])
    return sorted(checkpoints[number][0] for number in keep)
