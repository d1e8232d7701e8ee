"""Servicers are plain functions of a request; this runs them off the event loop and answers what they raise."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from types import SimpleNamespace
from typing import Any

import grpc

from steelyard_server.service.errors import status_of

Handler = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]


def unary(executor: Executor, method: Callable[[Any], Any]) -> Handler:
    """An asyncio handler that runs `method` on `executor` and turns its errors into statuses."""

    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, method, request)
        except Exception as error:
            code, message = status_of(error)
            await context.abort(code, message)

    return handle


def streamed(
    executor: Executor, method: Callable[[Any], Iterator[Any]]
) -> Callable[[Any, grpc.aio.ServicerContext[Any, Any]], AsyncIterator[Any]]:
    """As `unary`, for a method that yields its answers: each is made when the one before is on its way, so that a slow
    reader costs neither a thread nor more memory than two of them."""

    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        answers, loop = method(request), asyncio.get_running_loop()
        try:
            while (answer := await loop.run_in_executor(executor, next, answers, None)) is not None:
                yield answer
        except Exception as error:
            await context.abort(*status_of(error))

    return handle


def offloaded(methods: object, executor: Executor) -> Any:
    """What the generated add_..._to_server takes: a handler for each public method of `methods`, named as its RPC;
    those that yield are streams."""
    handlers = {}
    for name in dir(methods):
        if name[0].isupper():
            method = getattr(methods, name)
            edge = streamed if inspect.isgeneratorfunction(method) else unary
            handlers[name] = edge(executor, method)
    return SimpleNamespace(**handlers)
