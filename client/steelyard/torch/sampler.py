"""The batch sampler: a run's slices for a DataLoader, and the way back for the losses."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch.utils.data import Sampler

from steelyard.arguments import flag, seconds, whole
from steelyard.errors import DeadlineExceeded, FailedPrecondition, ForkedSession, SessionClosed
from steelyard.run import Run
from steelyard.session import Session
from steelyard.torch.iteration import Iteration
from steelyard.torch.matching import check_ids, check_losses, signal_tensors
from steelyard.torch.objective import objective
from steelyard.torch.pending import Part
from steelyard.torch.ranks import find_ranks, share_token
from steelyard.torch.seat import Seat
from steelyard.torch.state import step_of, to_state

# Between two looks at whether the other ranks have reported; mostly they are in the same step.
_FIRST_POLL_SECONDS = 0.002
_LAST_POLL_SECONDS = 0.1


class BatchSampler(Sampler[list[int]]):
    """Serves this rank's slice of every batch of a run to a DataLoader (batch_sampler=...), as lists of ids.

    After each batch call update() or report() once, in the order of the batches, with the per-example losses. A loader
    takes batches ahead of their training; what it took and was not reported is served again, first, by the next
    iteration, so that a loop may be left at any batch and nothing is lost or trained twice. One iteration is live at a
    time: an older one raises FailedPrecondition.

    It joins the run when the first batch is asked for, and belongs to the process that made it; a loader's workers get
    ids only. Iterating and reporting may be in two threads. Errors of the session (see steelyard.Session) are raised by
    every call, those of reports from a device by the next one.

    With torchdata's StatefulDataLoader(dataset, batch_sampler=sampler), loader.state_dict() holds the sampler's place
    as well: call it after update(), and load it into the loader of the next process. That goes on with the next batch,
    to the end of the same pass where there are `steps`; load no state into the sampler then. Because such a loader
    keeps a state with each batch that it takes ahead, update() waits until its report is durable, which a plain
    DataLoader beside sampler.state_dict() spares. snapshot_every_n_steps must be 1, its default: from an older state
    the loader would skip batches without training them.
    """

    def __init__(
        self,
        run: Run,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        group: torch.distributed.ProcessGroup | None = None,
        attempt: str | None = None,
        start_step: int | None = None,
        steps: int | None = None,
        micro_batches: int = 1,
        prefetch: int | None = None,
        timeout: float = 300.0,
        replica: int = 0,
        reports: bool | None = None,
    ) -> None:
        """`rank`, `world_size`: by default those of `group` (of the default group) where torch.distributed is
        initialised, else 0 and 1. `attempt`: the token that all ranks of this launch share; by default rank 0 makes one
        and broadcasts it here, so all ranks must make their sampler; without a process group steelyard.attempt says
        where it comes from. `start_step`: the step to go on from, by default the first that is not closed.

        `steps`: how many steps one iteration serves; endless by default. `micro_batches`: parts that a slice is served
        in, each with an update() of its own, for gradient accumulation. A rule that reads losses weighs each part over
        the same part of all ranks, as the seed paper's code does; it must weigh in the trainer then.

        `prefetch`: batches that the session holds ahead, by default the run's staleness, 16 at most. `timeout`: seconds
        that any one wait may take.

        `replica`: tells processes apart that share one rank's slice (model parallelism); all are served the same.
        `reports`: whether this one makes the reports, by default replica 0 does; with pipeline stages it is the last
        that has losses. One that does not calls update() where it has losses, which weighs and reports nothing (it
        asks the server with them where that weighs, and they count once), and advance() where it has none.

        InvalidArgument names the argument that is wrong.
        """
        self._run = run
        self._pid = os.getpid()
        self._ranks = find_ranks(rank, world_size, group)
        self._replica = whole("replica", replica, below=2**32)
        self._reports = flag("reports", reports, default=self._replica == 0)
        self._start_step = None if start_step is None else whole("start_step", start_step)
        self._steps = None if steps is None else whole("steps", steps, at_least=1)
        self._micro_batches = whole("micro_batches", micro_batches, at_least=1, below=2**32)
        self._prefetch = None if prefetch is None else whole("prefetch", prefetch, at_least=1, below=2**32)
        self._timeout = seconds("timeout", timeout)
        self._token = share_token(attempt, self._ranks, self._replica)
        self._loads = 0
        self._seat: Seat | None = None
        self._iteration: Iteration | None = None
        self._kept: set[int] = set()  # steps of states that a loader keeps
        self._waited = 0.0  # in sessions that are over
        self._served = False  # any batch, since the last state was loaded
        self._closed = False

    # -- batches ---------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[list[int]]:
        """Lists of ids, one for each batch (or micro-batch). First those that were served and not reported.

        Endless; with `steps`, that many steps from the first that is not reported in full.
        """
        self._check_usable()
        if self._seat is not None:
            self._seat.pending.restart()
        self._iteration = Iteration(self)
        return self._iteration

    def __len__(self) -> int:
        """Batches (or micro-batches) of one iteration that begins with a whole step. TypeError where it is endless."""
        if self._steps is None:
            raise TypeError("this BatchSampler is endless and has no length; make it with steps=...")
        return self._steps * self._micro_batches

    # -- losses ----------------------------------------------------------------------------------------------------

    def update(
        self, losses: torch.Tensor, *, ids: Any = None, signals: Mapping[str, Any] | None = None
    ) -> torch.Tensor:
        """Reports the losses of the oldest batch that was served and not reported, and returns the scalar to call
        backward() on.

        `losses`: float[n] on any device, one for each id of the batch (or micro-batch), with their graph. The gradient
        of the scalar, averaged over the ranks as DistributedDataParallel does and summed over the micro-batches, is
        that of the mean over the global batch of weight times loss. A loss that is not finite is reported and left out.

        `ids`: the ids that the losses are of, in host memory, to be compared with the batch's. `signals`: further named
        numbers, one for each loss.

        No CUDA device is waited for, unless the server weighs. Under a rule that reads losses and weighs in the trainer
        this is a collective: all ranks must call. FailedPrecondition: no batch lacks losses. MismatchedLosses: another
        count, or other ids, than the batch's; nothing is reported then.
        """
        return self._report(
            losses,
            ids,
            signals,
            lambda part, weights: objective(
                losses, weights, world_size=self._ranks.world_size, batch_size=part.batch.batch_size
            ),
        )

    def report(
        self, losses: torch.Tensor, *, ids: Any = None, signals: Mapping[str, Any] | None = None
    ) -> torch.Tensor:
        """As update, for who builds the scalar: returns the weights, float32[n] on the device of the losses.

        A weight of 0 says that the example need not be trained; the losses that are not finite have it. The objective
        is the sum of weight times loss over all ranks and micro-batches, divided by the size of the global batch.
        """
        return self._report(losses, ids, signals, lambda _, weights: weights)

    def advance(self) -> None:
        """Says that the oldest batch is trained, in a process that has no losses of it and does not report.

        FailedPrecondition: no batch was served that is not trained, or this process reports.
        """
        self._check_usable()
        if self._reports:
            raise FailedPrecondition(
                f"expected update() or report() with the losses of the batch, because this process (replica "
                f"{self._replica}) reports its slice; got advance(). Where another one does, make the sampler with "
                "reports=False"
            )
        seat = self._seat
        part = None if seat is None else seat.pending.oldest()
        if seat is None or part is None:
            raise FailedPrecondition(self._why_none_is_due())
        seat.pending.reported(part)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What to keep with the trainer's checkpoint: version, run and step, the same on every rank.

        Counts the steps whose whole slice was reported, not those that were only served. Waits until those reports are
        durable and the other ranks have reported the same steps, `timeout` seconds at most, and raises what became of
        them (ReportRefused, DeadlineExceeded). So a single rank may ask, for all of them, where the others do not wait
        for it before they report.
        """
        self._check_usable()
        if self._iteration is not None and self._iteration.asked_before_its_sampler():
            # By a loader, for each batch that it takes ahead. What counts there is the state of the iteration.
            return to_state(self._run.name, self.step)
        if self._seat is None:
            return to_state(self._run.name, self.step)
        step = self._seat.pending.step
        deadline = time.monotonic() + self._timeout
        self._seat.flush(self._timeout)
        self._await_other_ranks(self._seat, step, deadline)
        return to_state(self._run.name, step)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state: the next iteration joins at its step, as a new attempt, which undoes what the run
        served and was reported from there on. Any number of ranks may load it; all of them must, equally often.

        An iteration that is under way ends with FailedPrecondition. A fork goes on from its parent's state where it was
        forked at that very step. InvalidArgument: not a state, or another run's.
        """
        self._check_usable()
        self._go_on_from(state, None)

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def run(self) -> Run:
        return self._run

    @property
    def rank(self) -> int:
        return self._ranks.rank

    @property
    def world_size(self) -> int:
        return self._ranks.world_size

    @property
    def session(self) -> Session | None:
        """The session that batches come from, None before the first one is asked for."""
        return None if self._seat is None else self._seat.session

    @property
    def step(self) -> int:
        """The first step that is not trained: not reported in full by this rank.

        Before the first batch is asked for, where a join would begin; without a start step the server is asked.
        """
        if self._seat is not None:
            return self._seat.pending.step
        return self._run.info().closed_steps if self._start_step is None else self._start_step

    @property
    def waited_seconds(self) -> float:
        """Seconds that this rank has waited for the server: for batches and, where the server weighs, for weights."""
        return self._waited + (0.0 if self._seat is None else self._seat.waited_seconds)

    def __repr__(self) -> str:
        where = "not joined" if self._seat is None else f"step {self._seat.pending.step}"
        return f"<BatchSampler of {self._run!r}, rank {self.rank} of {self.world_size}, {where}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a BatchSampler belongs to the process that made it and does not pickle. A loader's workers get ids, so a "
            "dataset need not hold its sampler; pickle the Run and make a sampler there"
        )

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leaves the run in good order: waits until every report is durable, `timeout` seconds at most."""
        if self._closed:
            return
        self._check_usable()
        self._closed = True
        try:
            if self._seat is not None:
                self._seat.flush(self._timeout)
                self._seat.session.leave(self._timeout)
        finally:
            self._give_up_seat()

    def __enter__(self) -> BatchSampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._closed = True
            self._give_up_seat()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _next_part(self, iteration: Iteration) -> Part:
        """The next part of an iteration. StopIteration at its end."""
        self._check_usable()
        if iteration is not self._iteration:
            raise FailedPrecondition(
                "this iteration is over: a newer one of the same sampler has begun, or a state was loaded; its batches "
                "are served by the newer one"
            )
        seat = self._seat or self._take_seat()
        seat.reporter.check()
        if iteration.end is None and self._steps is not None:
            iteration.end = seat.pending.step + self._steps
        part = seat.pending.hand_out()
        if part is None:
            if iteration.end is not None and seat.session.step >= iteration.end:
                raise StopIteration
            seat.fetch()
            part = seat.pending.hand_out()
            assert part is not None
        self._served = True
        return part

    def _lacks_losses(self) -> bool:
        return self._seat is not None and self._seat.pending.oldest() is not None

    def _keep(self, step: int) -> None:
        self._kept.add(step)

    def _go_on_from(self, state: Mapping[str, Any], iteration: Iteration | None) -> None:
        step = step_of(state, self._run)
        self._give_up_seat()
        self._iteration = iteration
        self._start_step = step
        self._served = False
        self._kept.clear()
        self._loads += 1

    def _await_other_ranks(self, seat: Seat, step: int, deadline: float) -> None:
        """Waits until every step below `step` is reported by all ranks. DeadlineExceeded says which is not."""
        delay = _FIRST_POLL_SECONDS
        while self._ranks.world_size > 1 or not self._reports:
            closed = self._run.info().closed_steps
            if closed >= step:
                return
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"run {self._run.name!r}, rank {self.rank} of {self.world_size}: expected all ranks to have "
                    f"reported the steps below {step}, which a state counts, within {self._timeout:g} s. This rank's "
                    f"reports are durable; those of others lack step {closed}"
                )
            time.sleep(delay)
            delay = min(2 * delay, _LAST_POLL_SECONDS)
            seat.flush(self._timeout)  # raises what ended the session

    def _report(
        self,
        losses: torch.Tensor,
        ids: Any,
        signals: Mapping[str, Any] | None,
        use: Callable[[Part, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Reports the losses of the oldest part, and returns what `use` makes of it and their weights."""
        self._check_usable()
        seat = self._seat
        part = None if seat is None else seat.pending.oldest()
        if seat is None or part is None:
            raise FailedPrecondition(self._why_none_is_due())
        seat.reporter.check()
        check_losses(part, losses)
        if ids is not None:
            check_ids(part, ids)
        values = {"loss": losses.detach().float(), **signal_tensors(part, signals or {})}
        result = use(part, seat.weigh(part, values))
        # Last: it wakes another thread, which then runs beside backward() and does not hold up what is above.
        seat.report(part, values)
        if self._iteration is not None:
            self._iteration.asked_now = False
        if part.last and part.batch.step + 1 in self._kept:
            self._kept.discard(part.batch.step + 1)
            seat.flush(self._timeout)
        return result

    def _why_none_is_due(self) -> str:
        if self._served:
            return "no batch lacks losses: each one that was served was reported already"
        since = " since a state was loaded" if self._loads else ""
        return (
            f"no batch lacks losses: none was served yet{since}; expected one to be taken from the loader, or from "
            "iter() of this sampler, before its losses are reported"
        )

    def _take_seat(self) -> Seat:
        """Joins the run."""
        session = self._run.join(
            self.rank,
            self.world_size,
            start_step=self._start_step,
            # Each loaded state begins an attempt; all ranks count alike, so they need not talk.
            attempt=f"{self._token}/{self._loads}" if self._loads else self._token,
            replica=self._replica,
            reports=self._reports,
            prefetch=self._prefetch,
            timeout=self._timeout,
        )
        self._seat = Seat(session, self._ranks, micro_batches=self._micro_batches)
        return self._seat

    def _give_up_seat(self) -> None:
        if self._seat is not None:
            self._waited += self._seat.waited_seconds
            self._seat.close()
            self._seat = None

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedSession(
                f"the sampler of run {self._run.name!r} belongs to process {self._pid} that made it, and this is "
                f"process {os.getpid()}. A loader's workers need only the ids that they are given"
            )
        if self._closed:
            raise SessionClosed(f"the sampler of run {self._run.name!r} was closed")
