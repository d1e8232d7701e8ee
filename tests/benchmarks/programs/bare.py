"""A bare stream's messages, and the pipeline that stands for a server's work behind it."""

from __future__ import annotations

import queue
import struct
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

SERVICE = "benchmarks.Bare"
ECHO = f"/{SERVICE}/Echo"
"""report -> its answers, from the handler itself."""
GATHERED = f"/{SERVICE}/Gathered"
"""Several reports as one message, whose number is how many -> their answers as one message, likewise."""
PIPELINE = f"/{SERVICE}/Pipeline"
"""report -> actor -> committing writer -> its answers."""
UNARY = f"/{SERVICE}/Unary"
"""report -> all its answers as one message."""

OPTIONS = [("grpc.max_send_message_length", 1 << 26), ("grpc.max_receive_message_length", 1 << 26)]

# The number of the step, and whether this is the last message of its answer.
_HEAD = struct.Struct("<Q?")
_COMMIT_SECONDS = 0.0004
"""Stands for an fsync."""


def message(step: int, size: int, *, last: bool = True) -> bytes:
    """`size` bytes, of which the first nine are read."""
    return _HEAD.pack(step, last) + bytes(max(0, size - _HEAD.size))


def head(received: bytes) -> tuple[int, bool]:
    step, last = _HEAD.unpack_from(received)
    return step, last


def answers(report: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The messages that answer a report: one of each size."""
    step, _ = head(report)
    return [message(step, size, last=at == len(sizes) - 1) for at, size in enumerate(sizes)]


def gathered_answer(reports: bytes, sizes: Sequence[int]) -> bytes:
    """The one message that answers so many reports."""
    count, _ = head(reports)
    return message(count, count * sum(sizes))


# (stream, the answers to one of its reports); None for the answers: the stream is over.
Answered = tuple[queue.SimpleQueue, list[bytes] | None]


class Pipeline:
    """One actor thread, with NumPy work for each report, and one writer thread that commits what has gathered."""

    def __init__(self, deliver: Callable[[list], object], sizes: Sequence[int], sorts: int) -> None:
        """`deliver` gets [(stream, answers or None), ...] on the writer's thread. `sorts`: of 1024 values a report."""
        self._deliver = deliver
        self._sizes = sizes
        self._sorts = sorts
        self._values = np.random.default_rng(0).random(1024)
        self._reports: queue.SimpleQueue = queue.SimpleQueue()
        self._answered: queue.SimpleQueue = queue.SimpleQueue()
        for work in (self._act, self._write):
            threading.Thread(target=work, daemon=True).start()

    def put(self, stream: object, report: bytes | None) -> None:
        self._reports.put((stream, report))

    def _act(self) -> None:
        while True:
            stream, report = self._reports.get()
            if report is None:
                self._answered.put((stream, None))
                continue
            for _ in range(self._sorts):
                np.sort(self._values)
            self._answered.put((stream, answers(report, self._sizes)))

    def _write(self) -> None:
        while True:
            group = [self._answered.get()]
            while len(group) < 1024 and not self._answered.empty():
                group.append(self._answered.get())
            time.sleep(_COMMIT_SECONDS)
            self._deliver(group)


def sorts_in(seconds: float) -> int:
    """How many sorts of 1024 values take about so long here; from the best of several tries."""
    values = np.random.default_rng(0).random(1024)

    def fifty() -> float:
        start = time.perf_counter()
        for _ in range(50):
            np.sort(values)
        return time.perf_counter() - start

    return max(1, round(seconds / (min(fifty() for _ in range(20)) / 50)))
