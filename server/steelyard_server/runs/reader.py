"""A run's journal as others read it: on their own threads, while the run goes on writing it.

The run itself is not asked. The journal is a hash chain, so whoever has noted the chain at its end can tell at any
later time whether everything below is as it was: after each page that is looked up, before the page is given out. So
a run that goes back, is pruned or deleted meanwhile is noticed, and its records are neither mixed with the new ones nor
taken for damaged.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from steelyard_server.core.events import Event
from steelyard_server.history.errors import RecordDamaged
from steelyard_server.history.journal import Journal
from steelyard_server.runs.errors import Superseded, Unready

PAGE_RECORDS = 128
PAGE_BYTES = 4 << 20

Rows = list[tuple[int, Event]]


class JournalReader:
    """Reads the records that are durable when it is made. For one thread at a time."""

    def __init__(self, name: str, journal: Journal, begins_at: int = 0) -> None:
        """`journal` has just been opened and is this reader's alone; `begins_at`: the step that a run was forked at.
        RecordDamaged where its last record is.

        Superseded where it is empty: the run `name` was deleted.
        """
        self._name = name
        self._journal = journal
        self._end, self._chain = journal.next_seq, journal.chain
        self._begins_at = begins_at
        self._pieces = journal.lowest_seq(), journal.holes
        if not self._end:
            raise self._moved()

    def span(self, from_step: int | None, to_step: int | None) -> tuple[int, int]:
        """The first record of, and the one after, the draw of `from_step` up to that of `to_step`. None: from the
        oldest record behind which nothing is pruned, and to the last.

        Unready where from_step is not drawn, or something between the two is no longer kept.
        """
        start = self._journal.first_seq() if from_step is None else self.place_of(from_step)
        stop = self._end if to_step is None or self._is_ahead(to_step) else self.place_of(to_step)
        if not start <= stop <= self._piece_end(start):
            raise Unready(
                f"expected steps between which nothing is pruned: the journal of run {self._name!r} has all of "
                f"{self._kept()}; got from_step {from_step} and to_step {to_step}"
            )
        return start, stop

    def place_of(self, step: int) -> int:
        """The record of the draw of `step`. Unready where it is not drawn or no longer kept."""
        seq = self._journal.seq_of_step(step)
        if seq is None or seq >= self._end:
            what = "is not drawn yet" if self._is_ahead(step) else "is no longer kept"
            raise Unready(
                f"expected a step whose draw is in the journal of run {self._name!r}, which has {self._kept()}; got "
                f"{step}, which {what}"
            )
        return seq

    def next_step_at(self, seq: int) -> int:
        """The first step drawn behind record `seq`, or the one that would be next. `seq` is one behind which nothing is
        pruned. O(log steps) look-ups.

        Superseded: as pages."""
        first = self._journal.first_step()
        if first is None:
            return self._begins_at
        steps = range(first, self._next_step())
        found = first + bisect.bisect_left(steps, True, key=lambda step: self._is_behind(step, seq))
        self._check_unchanged(damaged=False)
        return found

    def pages(self, start: int, stop: int | None = None) -> Iterator[Rows]:
        """The records from `start` to `stop`, or to the last before one that was pruned, in order; a page holds 4 MiB
        or one record.

        RecordDamaged at the first record that is damaged or missing, after all those before it. Superseded where the
        run went back, or its journal was pruned, since this reader was made.
        """
        place, chain = start, None
        stop = self._piece_end(start) if stop is None else stop
        while place < stop:
            rows, chain, damage = self._page(place, stop, chain)
            if damage is not None:
                # A run that went back and came again to what it was has shown a moment between.
                rows, chain, damage = self._page(place, stop, chain)
            if rows:
                yield rows
            if damage is not None:
                raise damage.named(self._name)
            place += len(rows)

    def _page(
        self, place: int, stop: int, chain: bytes | None
    ) -> tuple[Rows, bytes | None, RecordDamaged | None]:
        """Records from `place` on, which `chain` leads to; the chain behind them, and what is damaged there."""
        rows: Rows = []
        damage = None
        try:
            for row in self._journal.read(place, self._page_stop(place, stop), chain=chain):
                rows.append(row)
            chain = self._journal.chain_at(place + len(rows))
        except RecordDamaged as error:
            damage = error
        self._check_unchanged(damage is not None)
        return rows, chain, damage

    def _page_stop(self, place: int, stop: int) -> int:
        count = min(PAGE_RECORDS, stop - place)
        try:
            while count > 1 and self._journal.bytes_between(place, place + count) > PAGE_BYTES:
                count //= 2
        except RecordDamaged:
            count = 1
        return place + count

    def _check_unchanged(self, damaged: bool) -> None:
        """Superseded where the records are no longer those that this reader was made for; where one seems damaged, also
        where some of them were pruned."""
        journal = self._journal
        try:
            journal.reload()
            same = journal.next_seq >= self._end and journal.chain_at(self._end) == self._chain
        except RecordDamaged:
            same = False
        if not same or (damaged and self._pieces != (journal.lowest_seq(), journal.holes)):
            raise self._moved()

    def _piece_end(self, seq: int) -> int:
        return min(self._journal.piece_end(seq), self._end)

    def _moved(self) -> Superseded:
        return Superseded(
            f"run {self._name!r} went back, or its journal was pruned, while it was read; ask again"
        )

    def _is_ahead(self, step: int) -> bool:
        return step >= self._next_step()

    def _next_step(self) -> int:
        """The first step that was not drawn when this reader was made."""
        first = self._journal.first_step() or 0
        return first + bisect.bisect_left(range(first, (1 << 63) - 1), True, key=self._is_missing)

    def _is_missing(self, step: int) -> bool:
        seq = self._journal.seq_of_step(step)
        return seq is None or seq >= self._end

    def _is_behind(self, step: int, seq: int) -> bool:
        drawn = self._journal.seq_of_step(step)
        return drawn is None or drawn > seq

    def _kept(self) -> str:
        first, after = self._journal.first_step(), self._next_step()
        return "none" if first is None or first == after else f"{first}..{after - 1}"
