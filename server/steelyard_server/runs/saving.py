"""Work that a run has done beside itself: writing a checkpoint, removing what is no longer kept.

It goes in steps, on a thread of its own, one piece of work at a time. The run begins it, hears of its end on its own
thread, and may break it off between two steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from steelyard_server.allocator import give_back
from steelyard_server.history.ops import Delete, DeleteRange, Op, weight
from steelyard_server.history.ranges import ROWS_A_RANGE
from steelyard_server.history.store import Store

_REST = 0.5
"""Of the time that a step took, what is rested before the next: others want the processor and the disk too."""

_BYTES_A_DELETED_ROW = 128
"""As which it counts in a part: by the time that it takes."""


class StoppedError(Exception):
    """The work was broken off because it was asked to."""


class NotBegunError(StoppedError):
    """The work was not begun: no thread could be had for it."""


class Work:
    """One piece of work. `on_end` is called on its thread; where nobody waits, it must see to it that `end` is."""

    def __init__(self, name: str, steps: Iterator[None], end: Callable[[BaseException | None], None]) -> None:
        """`end` is called by whoever began the work, once, with what it ended by: None, StoppedError, or another."""
        self.name = name
        self.end = end
        self.error: BaseException | None = None
        self._steps = steps
        self._rest = _REST
        self._stopping = threading.Event()
        self._done = threading.Event()

    def start(self, on_end: Callable[[], object]) -> None:
        """Where no thread can be had, it ends at once, by NotBegunError."""
        try:
            threading.Thread(target=self._run, args=(on_end,), name=self.name, daemon=True).start()
        except RuntimeError as error:
            self._ended(NotBegunError(f"{self.name} was not begun: {error}"), on_end)

    def stop(self) -> None:
        """It ends after the step that it is at; the first one is always made."""
        self._stopping.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, within `seconds`. It rests no more: the run stands still until then."""
        self._rest = 0.0
        return self._done.wait(seconds)

    def _run(self, on_end: Callable[[], object]) -> None:
        error: BaseException | None = None
        try:
            started = time.monotonic()
            for _ in self._steps:
                if self._stopping.wait(self._rest * (time.monotonic() - started)):
                    raise StoppedError(f"{self.name} was broken off")
                started = time.monotonic()
        except BaseException as raised:
            error = raised
        self._ended(error, on_end)
        # What the work before has freed by now, and most of what this one has.
        give_back()

    def _ended(self, error: BaseException | None, on_end: Callable[[], object]) -> None:
        self.error = error
        self._steps = iter(())
        self._done.set()
        on_end()


def commits(store: Store, first: Op, ops: Iterable[Op], part_bytes: int, *, frees: bool) -> Iterator[None]:
    """Steps that commit `ops` in parts of some `part_bytes`, each behind `first`: a fence."""
    for part in parts(ops, part_bytes):
        store.commit([first, *part], frees=frees)
        yield


def parts(ops: Iterable[Op], part_bytes: int) -> Iterator[Sequence[Op]]:
    """The ops in their order, in pieces that hold up a commit of somebody else for some milliseconds."""
    part: list[Op] = []
    size = 0
    for op in ops:
        part.append(op)
        size += _weight(op)
        if size >= part_bytes:
            yield part
            part, size = [], 0
    if part:
        yield part


def _weight(op: Op) -> int:
    if isinstance(op, DeleteRange):
        return ROWS_A_RANGE * _BYTES_A_DELETED_ROW
    return _BYTES_A_DELETED_ROW if isinstance(op, Delete) else weight(op)
