"""The trainers of a run as far as they decide when a batch is drawn: who holds how much credit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twin import operations as op
from twin.run import Run


@dataclass
class Seat:
    """A connected rank. It is sent the batches below `cursor`, and takes `credit` more as soon as they are drawn."""

    rank: int
    world_size: int
    cursor: int
    credit: int


def pump(run: Run, seats: list[Seat], drawn: Callable[[int], None] = lambda step: None) -> None:
    """Draws and sends until no rank has credit or no batch may be drawn. Ranks lose their seats where none can be."""
    while hungry := [seat for seat in seats if seat.credit]:
        behind = [seat for seat in hungry if seat.cursor < run.state.next_step]
        for seat in behind:
            seat.cursor += 1
            seat.credit -= 1
        if behind:
            continue
        if run.state.waits:
            return
        if run.state.cannot_draw:
            seats.clear()
            return
        run.do(op.Draw(run.state.next_step))
        drawn(run.state.next_step - 1)
