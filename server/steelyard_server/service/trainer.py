"""TrainerService: the bidirectional stream, one per rank."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Any

import grpc

from steelyard.v1 import trainer_pb2 as pb
from steelyard.v1 import trainer_pb2_grpc
from steelyard_server.runs.catalog import Catalog
from steelyard_server.runs.errors import Invalid
from steelyard_server.runs.messages import Outgoing
from steelyard_server.runs.run import Run
from steelyard_server.service import convert
from steelyard_server.service.errors import status_of

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


class TrainerService(trainer_pb2_grpc.TrainerServiceServicer):
    """Thin: the run judges, this converts. `executor` runs what may wait for the disk."""

    def __init__(self, catalog: Catalog, executor: Executor) -> None:
        self._catalog = catalog
        self._executor = executor

    async def Train(
        self, requests: AsyncIterator[pb.TrainRequest], context: Context
    ) -> AsyncIterator[pb.TrainResponse]:
        outbox = StreamOutbox(asyncio.get_running_loop())
        reader = asyncio.create_task(self._read(requests, outbox))
        try:
            async for gathered in outbox.gathered():
                for response in convert.responses(gathered):
                    yield response
        finally:
            reader.cancel()
            outbox.end(None)
        if outbox.error is not None:
            await context.abort(*status_of(outbox.error))

    async def _read(self, requests: AsyncIterator[pb.TrainRequest], outbox: StreamOutbox) -> None:
        run: Run | None = None
        try:
            async for request in requests:
                for message in request.messages:
                    if run is None:
                        run = await self._join(message, outbox)
                    else:
                        _pass_on(run, message, outbox)
        except Exception as error:
            outbox.end(error)
        finally:
            if run is not None:
                run.leave(outbox)
            else:
                outbox.end(None)

    async def _join(self, message: pb.TrainerMessage, outbox: StreamOutbox) -> Run:
        if message.WhichOneof("message") != "join":
            raise Invalid(f"expected Join as the first message; got {message.WhichOneof('message')}")
        join = message.join
        loop = asyncio.get_running_loop()
        run = await loop.run_in_executor(
            self._executor, self._catalog.run_to_join, join.run, join.fingerprint
        )
        run.join(convert.join(join), outbox)
        return run


def _pass_on(run: Run, message: pb.TrainerMessage, outbox: StreamOutbox) -> None:
    match message.WhichOneof("message"):
        case "report":
            run.report(outbox, convert.report(message.report))
        case "credit":
            run.credit(outbox, message.credit.batches)
        case "leave":
            run.leave(outbox)
        case other:
            raise Invalid(f"expected Credit, Report or Leave after Join; got {other}")
