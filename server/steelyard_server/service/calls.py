"""Servicers are plain functions of a request; this runs them off the event loop and answers what they raise."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
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


def offloaded(methods: object, executor: Executor) -> Any:
    """What the generated add_..._to_server takes: a handler for each public method of `methods`, named as its RPC."""
    names = [name for name in dir(methods) if name[0].isupper()]
    return SimpleNamespace(**{name: unary(executor, getattr(methods, name)) for name in names})
