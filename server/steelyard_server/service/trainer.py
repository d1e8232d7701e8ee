"""TrainerService: the bidirectional stream, one per rank."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from structlog.contextvars import bind_contextvars

from steelyard.v1 import trainer_pb2 as pb
from steelyard.v1 import trainer_pb2_grpc
from steelyard_server.history.errors import StoreFull
from steelyard_server.log import printable
from steelyard_server.runs.catalog import Catalog
from steelyard_server.runs.errors import Invalid
from steelyard_server.runs.messages import Acknowledgement, Credit, Outgoing, Refusal, Report
from steelyard_server.runs.run import Run
from steelyard_server.service import convert
from steelyard_server.service.errors import status_of, trailers_of

MAX_UNANSWERED = 1024
"""Reports of one stream that may be under way, as long as they are small."""

Context = grpc.aio.ServicerContext[Any, Any]


class Doorbell:
    """Wakes the event loop for all outboxes that have something for it: one wake-up is dearer than what it brings."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting: list[asyncio.Event] = []

    def ring(self, ready: asyncio.Event) -> None:
        """Has `ready` set on the loop. From any thread."""
        with self._lock:
            self._waiting.append(ready)
            if len(self._waiting) > 1:
                return
        # The loop is closed when the server has stopped: nobody is left to read.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for ready in waiting:
            ready.set()


class StreamOutbox:
    """From the run's threads to one stream on the event loop. What it holds is bounded by the trainer's credit."""

    def __init__(self, bell: Doorbell) -> None:
        self._bell = bell
        self._lock = threading.Lock()
        self._messages: list[Outgoing] = []
        self._ready = asyncio.Event()
        self._waking = False
        self._ended = False
        self.joined: dict[str, Any] = {}
        """Which run, as which rank: for the log."""
        self.error: Exception | None = None

    def send(self, message: Outgoing) -> None:
        with self._lock:
            if self._ended:
                return
            self._messages.append(message)
            wake, self._waking = not self._waking, True
        if wake:
            self._bell.ring(self._ready)

    def end(self, error: Exception | None) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended, self.error = True, error
        self._bell.ring(self._ready)

    async def gathered(self) -> list[Outgoing]:
        """What was sent since the last call, in order; waits for it. Empty: the end. For one reader on the loop."""
        while True:
            with self._lock:
                messages, ended = self._messages, self._ended
                self._messages = []
                self._waking = False
                self._ready.clear()
            if messages or ended:
                return messages
            await self._ready.wait()


class ReportWindow:
    """Bounds the reports of one stream that are read and not answered: a trainer that sends faster than they become
    durable, or does not read its answers, is not read from. For the event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._room = asyncio.Event()

    def has_room(self, size: int) -> bool:
        """Whether one report more may be under way. One is always."""
        full = self._bytes + size > self._max_bytes or len(self._sizes) >= MAX_UNANSWERED
        return not (self._sizes and full)

    async def enter(self, size: int) -> None:
        """Waits until there is room, and takes it."""
        while not self.has_room(size):
            self._room.clear()
            await self._room.wait()
        self._sizes.append(size)
        self._bytes += size

    def answered(self, reports: int) -> None:
        for _ in range(reports):
            self._bytes -= self._sizes.popleft()
        self._room.set()


class TrainerService(trainer_pb2_grpc.TrainerServiceServicer):
    """Thin: the run judges, this converts."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._bells: dict[asyncio.AbstractEventLoop, Doorbell] = {}

    # A coroutine that reads and writes by calls on its context is cheaper than two async iterators, which are all that
    # the stubs know of.
    async def Train(  # type: ignore[override]
        self, requests: AsyncIterator[pb.TrainRequest], context: Context
    ) -> None:
        outbox = StreamOutbox(self._bell())
        window = ReportWindow(2 * self._catalog.max_message_bytes)
        reader = asyncio.create_task(self._read(context, outbox, window))
        try:
            while gathered := await outbox.gathered():
                for response in convert.responses(gathered):
                    await context.write(response)
                window.answered(sum(isinstance(one, Acknowledgement | Refusal) for one in gathered))
        finally:
            reader.cancel()
            outbox.end(None)
            # The reader is a task with a context of its own.
            bind_contextvars(**outbox.joined)
        if outbox.error is not None:
            await context.abort(*_status_of(outbox.error), trailers_of(outbox.error))

    async def _read(self, context: Context, outbox: StreamOutbox, window: ReportWindow) -> None:
        run: Run | None = None
        try:
            while (request := await context.read()) is not grpc.aio.EOF:
                messages = list(request.messages)
                if run is None and messages:
                    run = self._join(messages.pop(0), outbox)
                if run is not None:
                    await _pass_on(run, messages, outbox, window)
        except Exception as error:
            outbox.end(error)
        finally:
            if run is not None:
                run.leave(outbox)
            else:
                outbox.end(None)

    def _bell(self) -> Doorbell:
        loop = asyncio.get_running_loop()
        if loop not in self._bells:
            self._bells[loop] = Doorbell(loop)
        return self._bells[loop]

    def _join(self, message: pb.TrainerMessage, outbox: StreamOutbox) -> Run:
        if message.WhichOneof("message") != "join":
            raise Invalid(f"expected Join as the first message; got {message.WhichOneof('message')}")
        join = message.join
        outbox.joined = {"run": printable(join.run), "rank": join.rank}
        bind_contextvars(**outbox.joined)
        run = self._catalog.run_to_join(join.run, join.fingerprint)
        run.join(convert.join(join), outbox)
        return run


def _status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """A trainer waits for room as it waits for a server that is away: it joins again, until it is tired of it."""
    code, message = status_of(error)
    return grpc.StatusCode.UNAVAILABLE if isinstance(error, StoreFull) else code, message


async def _pass_on(
    run: Run, messages: Iterable[pb.TrainerMessage], outbox: StreamOutbox, window: ReportWindow
) -> None:
    """To the run in one piece, except where a report has to wait for room."""
    taken: list[Report | Credit] = []
    try:
        for message in messages:
            match message.WhichOneof("message"):
                case "report":
                    report = convert.report(message.report)
                    size = convert.size_of(report)
                    if not window.has_room(size):
                        run.take(outbox, taken)
                        taken = []
                    await window.enter(size)
                    taken.append(report)
                case "credit":
                    if not message.credit.batches:
                        raise Invalid("expected credit for at least 1 batch; got 0")
                    taken.append(Credit(message.credit.batches))
                case "leave":
                    run.take(outbox, taken)
                    taken = []
                    run.leave(outbox)
                case other:
                    raise Invalid(f"expected Credit, Report or Leave after Join; got {other}")
    finally:
        # Also what came before a message that is refused.
        if taken:
            run.take(outbox, taken)
