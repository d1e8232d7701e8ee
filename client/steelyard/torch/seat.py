"""What a sampler has while it is joined: a session, its reporter, and what is handed out and not trained."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from steelyard.errors import InvalidArgument, SessionClosed, StalenessError
from steelyard.session import Session
from steelyard.torch.copies import HostCopy
from steelyard.torch.objective import known_finite
from steelyard.torch.pending import Part, Pending, parts_of
from steelyard.torch.ranks import Ranks
from steelyard.torch.reporter import Reporter
from steelyard.torch.weighing import weigh_together
from steelyard.weighing import Where


class Seat:
    """A rank's place in a run, from one join to its end."""

    def __init__(self, session: Session, ranks: Ranks, *, micro_batches: int) -> None:
        """InvalidArgument: slices too small for the micro-batches, or a rule that cannot be applied here; the session
        is closed then.
        """
        self.session = session
        self.reporter = Reporter(session)
        self.pending = Pending(session.start_step)
        self.waited_for_weights = 0.0
        """Seconds."""
        self._ranks = ranks
        self._micro_batches = micro_batches
        try:
            self._check_slices()
            self._where(session.start_step)
        except InvalidArgument:
            session.close()
            raise

    @property
    def waited_seconds(self) -> float:
        """Seconds that this process has waited for the server."""
        return self.session.waited_seconds + self.waited_for_weights

    def fetch(self) -> None:
        """Takes the next batch from the session into what is pending. Errors are Session.next's."""
        try:
            batch = self.session.next()
        except StalenessError as error:
            if self._micro_batches == 1:
                raise
            raise StalenessError(
                f"{error}. A DataLoader takes micro-batches here, {self._micro_batches} to a step, so in (1) "
                f"prefetch_factor * num_workers may be at most {self._micro_batches} times the staleness"
            ) from error
        except SessionClosed:
            self.reporter.check()  # it closes the session where it fails
            raise
        self.pending.add(parts_of(batch, self._micro_batches))

    def weigh(self, part: Part, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weights of the oldest part, on the device of its losses, values["loss"] (float32).

        Where the server makes them, this reports the named numbers; otherwise that is left to report().
        """
        step, losses = part.batch.step, values["loss"]
        if self.session.weighing_at(step).source == "draw":
            weights = _on_device(part.weight, losses.device)
        elif self._where(step) == "server":
            weights = _on_device(self._ask(part, values), losses.device)
        else:
            rule = self.session.rule_at(step)
            weights = weigh_together(losses, rule, part, self._ranks, self._micro_batches)
        return weights if known_finite(losses) else torch.where(torch.isfinite(losses), weights, 0.0)

    def report(self, part: Part, values: Mapping[str, torch.Tensor]) -> None:
        """Reports the named numbers of the oldest part, which was weighed, and which is trained with that."""
        step = part.batch.step
        asked = self.session.weighing_at(step).source != "draw" and self._where(step) == "server"
        if self.session.reports and not asked:
            self.reporter.report(part, values)
        self.pending.reported(part)

    def flush(self, timeout: float) -> None:
        """Waits until every report is durable, and raises what became of them."""
        deadline = time.monotonic() + timeout
        self.reporter.drain(timeout)
        self.reporter.check()
        self.session.flush(max(deadline - time.monotonic(), 1.0))

    def close(self) -> None:
        """Ends the session at once."""
        self.reporter.stop()
        self.session.close()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _ask(self, part: Part, values: Mapping[str, torch.Tensor]) -> npt.NDArray[np.float32]:
        """Reports, and waits for the server's weights."""
        arrays = {name: HostCopy(tensor).numpy() for name, tensor in values.items()}
        began = time.monotonic()
        answer = self.session.report_raw(part.batch, arrays.pop("loss"), signals=arrays, want_weights=True)
        weights = answer.result()
        self.waited_for_weights += time.monotonic() - began
        return weights

    def _check_slices(self) -> None:
        smallest = self.session.batch_size // self._ranks.world_size
        if smallest < self._micro_batches:
            raise InvalidArgument(
                f"micro_batches: expected at most {smallest}, the smallest slice of a batch of "
                f"{self.session.batch_size} for {self._ranks.world_size} ranks, got {self._micro_batches}"
            )

    def _where(self, step: int) -> Where:
        """Where weights that read losses are made. InvalidArgument: this step's rule reads them, and cannot."""
        weighing = self.session.weighing_at(step)
        where = self.session.where_at(step, gathered=self._ranks.together)
        if weighing.source == "draw":
            return where
        if where == "server" and self._micro_batches > 1:
            way_out = "Only the server can"
            if weighing.source == "losses" and weighing.rule is not None:
                way_out = (
                    "Weigh in the trainer: initialise torch.distributed with a group of all ranks, and set weigh.where "
                    'to "auto" or "client"'
                )
            raise InvalidArgument(
                f"micro_batches: expected 1, because the server weighs by {weighing.method!r}, which needs the losses "
                f"of the whole batch before the first backward(); got {self._micro_batches}. {way_out}"
            )
        alone = self._ranks.together or self._ranks.world_size == 1
        if where == "client" and not alone:
            raise InvalidArgument(
                f'the policy weighs in the trainer (weigh.where "client") by {weighing.method!r}, which needs the '
                f"losses of all {self._ranks.world_size} ranks: initialise torch.distributed with a group of these "
                'ranks, or set weigh.where to "auto" or "server"'
            )
        return where


def _on_device(values: npt.NDArray[np.float32], device: torch.device) -> torch.Tensor:
    """A copy on the device; a CUDA device is not waited for."""
    tensor = torch.from_numpy(values.copy())
    if device.type != "cuda":
        return tensor if device.type == "cpu" else tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
