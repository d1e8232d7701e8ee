"""What a loader was handed and the trainer has not reported, in order.

A loader takes batches ahead of their training, and drops what it holds when its loop is left early. So a part stays
here until its losses are reported, and a new iteration begins with what is here.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steelyard.batch import Batch
from steelyard.split import split


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One micro-batch: `count` positions of a slice from position `first` on; the whole slice where there is one."""

    batch: Batch
    index: int
    """Which of the slice's micro-batches."""
    first: int
    count: int
    last: bool
    """Whether the slice ends with it."""

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return self.batch.ids[self.first : self.first + self.count]

    @property
    def weight(self) -> npt.NDArray[np.float32]:
        """The weights that came with the batch."""
        return self.batch.weight[self.first : self.first + self.count]

    def __str__(self) -> str:
        where = "" if self.count == len(self.batch) else f", micro-batch {self.index}"
        return f"step {self.batch.step}{where}"


def parts_of(batch: Batch, micro_batches: int) -> list[Part]:
    """The slice in equal parts, by the rule of numpy.array_split."""
    cuts = [split(len(batch), micro_batches, index) for index in range(micro_batches)]
    return [
        Part(batch, index, first, count, index == micro_batches - 1)
        for index, (first, count) in enumerate(cuts)
    ]


class Pending:
    """Parts in order. The present iteration has handed out the first of them; earlier ones may have handed out more.

    One thread iterates and one reports; they may be two.
    """

    def __init__(self, step: int) -> None:
        self._lock = threading.Lock()
        self._parts: deque[Part] = deque()
        self._handed_out = 0  # by the present iteration
        self._due = 0  # handed out by any iteration
        self._step = step

    @property
    def step(self) -> int:
        """Every step below this one is reported in full, as far as this rank goes; no other is."""
        return self._step

    def restart(self) -> None:
        """A new iteration: everything that is not reported will be handed out again."""
        with self._lock:
            self._handed_out = 0

    def hand_out(self) -> Part | None:
        """The next part of the present iteration, None where a new batch is needed."""
        with self._lock:
            if self._handed_out == len(self._parts):
                return None
            self._handed_out += 1
            self._due = max(self._due, self._handed_out)
            return self._parts[self._handed_out - 1]

    def add(self, parts: list[Part]) -> None:
        """A new batch, to be handed out after all others."""
        with self._lock:
            self._parts.extend(parts)

    def oldest(self) -> Part | None:
        """The part whose losses are due, None where nothing that was handed out lacks them."""
        with self._lock:
            return self._parts[0] if self._due else None

    def reported(self, part: Part) -> None:
        """The losses of the oldest part were reported."""
        with self._lock:
            assert self._parts[0] is part, f"{part} is not the oldest"
            self._parts.popleft()
            self._due -= 1
            self._handed_out = max(self._handed_out - 1, 0)
            if part.last:
                self._step = part.batch.step + 1
