"""TrainerService: the bidirectional stream, one per rank."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import grpc

from steelyard.v1 import trainer_pb2 as pb
from steelyard.v1 import trainer_pb2_grpc
from steelyard_server.history.errors import StoreFull
from steelyard_server.runs.catalog import Catalog
from steelyard_server.runs.errors import Invalid
from steelyard_server.runs.messages import Acknowledgement, Outgoing, Refusal
from steelyard_server.runs.run import Run
from steelyard_server.service import convert
from steelyard_server.service.errors import status_of

MAX_UNANSWERED = 1024
"""Reports of one stream that may be under way, as long as they are small."""

Context = grpc.aio.ServicerContext[Any, Any]


class StreamOutbox:
    """From the run's threads to one stream on the event loop. What it holds is bounded by the trainer's credit."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._messages: deque[Outgoing] = deque()
        self._ready = asyncio.Event()
        self._waking = False
        self._ended = False
        self.error: Exception | None = None

    def send(self, message: Outgoing) -> None:
        with self._lock:
            if self._ended:
                return
            self._messages.append(message)
            wake, self._waking = not self._waking, True
        if wake:
            self._wake()

    def end(self, error: Exception | None) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended, self.error = True, error
        self._wake()

    async def gathered(self) -> AsyncIterator[list[Outgoing]]:
        """What was sent, in order, until the end: at each turn all that has gathered. For one reader on the loop."""
        while True:
            with self._lock:
                batch, ended = list(self._messages), self._ended
                self._messages.clear()
                self._waking = False
                self._ready.clear()
            if batch:
                yield batch
            if ended:
                return
            if not batch:
                await self._ready.wait()

    def _wake(self) -> None:
        # The loop is closed when the server has stopped: nobody is left to read.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ready.set)


class ReportWindow:
    """Bounds the reports of one stream that are read and not answered: a trainer that sends faster than they become
    durable, or does not read its answers, is not read from. For the event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._room = asyncio.Event()

    async def enter(self, size: int) -> None:
        """Waits until one report more may be under way. One is always."""
        while self._sizes and (self._bytes + size > self._max_bytes or len(self._sizes) >= MAX_UNANSWERED):
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

    async def Train(
        self, requests: AsyncIterator[pb.TrainRequest], context: Context
    ) -> AsyncIterator[pb.TrainResponse]:
        outbox = StreamOutbox(asyncio.get_running_loop())
        window = ReportWindow(2 * self._catalog.max_message_bytes)
        reader = asyncio.create_task(self._read(requests, outbox, window))
        try:
            async for gathered in outbox.gathered():
                for response in convert.responses(gathered):
                    yield response
                window.answered(sum(isinstance(one, Acknowledgement | Refusal) for one in gathered))
        finally:
            reader.cancel()
            outbox.end(None)
        if outbox.error is not None:
            await context.abort(*_status_of(outbox.error))

    async def _read(
        self, requests: AsyncIterator[pb.TrainRequest], outbox: StreamOutbox, window: ReportWindow
    ) -> None:
        run: Run | None = None
        try:
            async for request in requests:
                for message in request.messages:
                    if run is None:
                        run = self._join(message, outbox)
                        continue
                    if message.HasField("report"):
                        await window.enter(message.ByteSize())
                    _pass_on(run, message, outbox)
        except Exception as error:
            outbox.end(error)
        finally:
            if run is not None:
                run.leave(outbox)
            else:
                outbox.end(None)

    def _join(self, message: pb.TrainerMessage, outbox: StreamOutbox) -> Run:
        if message.WhichOneof("message") != "join":
            raise Invalid(f"expected Join as the first message; got {message.WhichOneof('message')}")
        join = message.join
        run = self._catalog.run_to_join(join.run, join.fingerprint)
        run.join(convert.join(join), outbox)
        return run


def _status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """A trainer waits for room as it waits for a server that is away: it joins again, until it is tired of it."""
    code, message = status_of(error)
    return grpc.StatusCode.UNAVAILABLE if isinstance(error, StoreFull) else code, message


def _pass_on(run: Run, message: pb.TrainerMessage, outbox: StreamOutbox) -> None:
    match message.WhichOneof("message"):
        case "report":
            run.report(outbox, convert.report(message.report))
        case "credit":
            if not message.credit.batches:
                raise Invalid("expected credit for at least 1 batch; got 0")
            run.credit(outbox, message.credit.batches)
        case "leave":
            run.leave(outbox)
        case other:
            raise Invalid(f"expected Credit, Report or Leave after Join; got {other}")
