"""Hands losses to a session: at once where they are in host memory, else when their copy has arrived."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from steelyard.errors import DeadlineExceeded, ReportRefused
from steelyard.session import Session
from steelyard.torch.copies import HostCopy
from steelyard.torch.pending import Part

_Copies = Mapping[str, HostCopy]


class Reporter:
    """Reports for one session. The thread that waits for devices is started when the first of their losses comes.

    Errors of that thread are raised by check(): a refusal once, and the session goes on; anything else for good, and
    the session is closed, so that nobody waits for a report that will not be made.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._work: queue.SimpleQueue[tuple[Part, _Copies] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        # Changed under the lock.
        self._waiting = 0
        self._refusals: deque[ReportRefused] = deque()
        self._failure: Exception | None = None

    def report(self, part: Part, values: Mapping[str, torch.Tensor]) -> None:
        """Reports the named numbers of `part`, "loss" among them: each [n], on any device.

        Raises what Session.report_raw raises for numbers in host memory; nothing is reported then. For others returns
        before they are there.
        """
        if all(tensor.device.type == "cpu" for tensor in values.values()):
            # The session copies what it is given, so these need no copy of their own.
            self._hand_over(part, {name: tensor.detach().float().numpy() for name, tensor in values.items()})
        else:
            self.send(part, {name: HostCopy(tensor) for name, tensor in values.items()})

    def send(self, part: Part, copies: _Copies) -> None:
        """As report, for copies that were started."""
        if not any(copy.waits for copy in copies.values()):
            self._deliver(part, copies)
            return
        if part.last:
            self._session.announce(part.batch)
        with self._changed:
            self._waiting += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="steelyard reporter", daemon=True)
            self._thread.start()
        self._work.put((part, copies))

    def check(self) -> None:
        """Raises what the thread could not do."""
        with self._changed:
            if self._failure is not None:
                raise self._failure
            if self._refusals:
                raise self._refusals.popleft()

    def drain(self, timeout: float) -> None:
        """Waits until the session has everything. DeadlineExceeded: not within `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting == 0, timeout):
                raise DeadlineExceeded(
                    f"the losses of {self._waiting} batches did not arrive from their device within {timeout:g} s"
                )

    def stop(self) -> None:
        """Ends the thread after what it holds. Does not wait for it."""
        self._work.put(None)

    def _main(self) -> None:
        for part, copies in iter(self._work.get, None):
            try:
                if self._failure is None:
                    self._deliver_here(part, copies)
            except Exception as error:
                with self._changed:
                    self._failure = error
                self._session.close()
            finally:
                with self._changed:
                    self._waiting -= 1
                    self._changed.notify_all()

    def _deliver_here(self, part: Part, copies: _Copies) -> None:
        """Delivers, and keeps for later what the session raises about earlier reports."""
        while True:
            try:
                return self._deliver(part, copies)
            except ReportRefused as refusal:  # each is raised once, so this ends
                with self._changed:
                    self._refusals.append(refusal)

    def _deliver(self, part: Part, copies: _Copies) -> None:
        self._hand_over(part, {name: copy.numpy() for name, copy in copies.items()})

    def _hand_over(self, part: Part, values: dict[str, npt.NDArray[np.float32]]) -> None:
        losses = values.pop("loss")
        self._session.report_raw(part.batch, losses, signals=values, offset=part.first)
