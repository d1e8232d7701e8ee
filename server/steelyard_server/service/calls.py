"""Servicers are plain functions of a request; this runs them off the event loop and answers what they raise."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import Executor
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, cast

import grpc
from structlog.contextvars import bind_contextvars

from steelyard_server.log import printable
from steelyard_server.runs.errors import NotNow
from steelyard_server.service.errors import refusal_of
from steelyard_server.service.once import Once, Outcome

NothingYet = Literal["nothing yet"]
NOTHING_YET: NothingYet = "nothing yet"

Handler = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]


def unary(executor: Executor, method: Callable[[Any], Any], once: Once | None = None) -> Handler:
    """An asyncio handler that runs `method` on `executor` and turns its errors into statuses; with `once`, what a
    client asks for again is done once."""

    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        async def done() -> Outcome:
            work = partial(contextvars.copy_context().run, method, request)
            try:
                return Outcome(await asyncio.get_running_loop().run_in_executor(executor, work))
            except Exception as error:
                return Outcome(refusal=refusal_of(error), nothing_done=isinstance(error, NotNow))

        try:
            _say_what(request)
            if once is None:
                outcome = await done()
            else:
                metadata = dict(context.invocation_metadata() or ())
                outcome = await once.do(metadata, method.__qualname__, request, done)
        except Exception as error:
            outcome = Outcome(refusal=refusal_of(error))
        if outcome.refusal is not None:
            await context.abort(*outcome.refusal)
        return outcome.answer

    return handle


def streamed(
    executor: Executor, method: Callable[[Any], Iterator[Any]]
) -> Callable[[Any, grpc.aio.ServicerContext[Any, Any]], AsyncIterator[Any]]:
    """As `unary`, for a method that yields its answers: each is made when the one before is on its way, so that a slow
    reader costs neither a thread nor more memory than two of them. When the caller takes the call back, or its time is
    over, the method is closed as soon as it yields again; NOTHING_YET is for one that may have nothing to say for
    long, and is not sent."""

    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        _say_what(request)
        answers, loop = _Answers(method(request)), asyncio.get_running_loop()
        work = partial(contextvars.copy_context().run, answers.next)
        try:
            while (answer := await loop.run_in_executor(executor, work)) is not None:
                if answer is not NOTHING_YET:
                    yield answer
        except Exception as error:
            await context.abort(*refusal_of(error))
        finally:
            with contextlib.suppress(RuntimeError):  # the server ends, and what is under way is ended with it
                executor.submit(answers.close)

    return handle


class _Answers:
    """What a method yields, one at a time, on whatever threads."""

    def __init__(self, answers: Iterator[Any]) -> None:
        self._answers = answers
        self._one = threading.Lock()

    def next(self) -> Any:
        """None at the end."""
        with self._one:
            return next(self._answers, None)

    def close(self) -> None:
        """Ends the method where it stands, when the answer that is being made is there."""
        with self._one:
            cast("Generator[Any, None, None]", self._answers).close()


def offloaded(methods: object, executor: Executor, once: Once | None = None) -> Any:
    """What the generated add_..._to_server takes: a handler for each public method of `methods`, named as its RPC;
    those that yield are streams."""
    handlers: dict[str, Any] = {}
    for name in dir(methods):
        if name[0].isupper():
            method = getattr(methods, name)
            if inspect.isgeneratorfunction(method):
                handlers[name] = streamed(executor, method)
            else:
                handlers[name] = unary(executor, method, once)
    return SimpleNamespace(**handlers)


def _say_what(request: Any) -> None:
    """Which run or dataset, and step, a call is about: for every line that is logged on behalf of it."""
    descriptor = request.DESCRIPTOR
    what = "dataset" if descriptor.file.name.endswith("datasets.proto") else "run"
    spec = descriptor.fields_by_name.get("spec")
    named = request if spec is None else request.spec
    if "name" in named.DESCRIPTOR.fields_by_name:
        bind_contextvars(**{what: printable(named.name)})
    step = descriptor.fields_by_name.get("step")
    if step is not None and (not step.has_presence or request.HasField("step")):
        bind_contextvars(step=request.step)
