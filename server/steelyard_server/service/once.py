"""Calls that count when they are repeated, done once: a client whose connection ends before the answer asks again by
the same request id, and gets the answer of the first time.

What was asked is remembered in memory, for longer than a client repeats it. Who starts anew has forgotten, and says so
rather than doing it twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from steelyard_server.runs.errors import Exhausted, Invalid, Superseded
from steelyard_server.security.caller import caller
from steelyard_server.service.errors import Trailers

REQUEST_ID = "x-request-id"
INSTANCE = "x-steelyard-instance"
_KEPT_SECONDS = 90.0
"""A client repeats a call for 45 s at most (transport.py)."""
_UNDER_WAY = 1024
"""More than wait for an answer at a time: one whose client went away still has a place in the queue of calls."""

Refusal = tuple[grpc.StatusCode, str, Trailers]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call is answered: one of the first two. An error itself would keep what its traceback saw:
    requests, too."""

    answer: Any = None
    refusal: Refusal | None = None
    nothing_done: bool = False
    """It may be asked for again as if for the first time."""


Work = Callable[[], Coroutine[Any, Any, Outcome]]
Asked = tuple[str | None, str]
"""By whom, and the request id, which others may guess."""


class Once:
    """For the event loop. `instance` names this life of the server; `methods` are those that count when repeated, by
    their qualified names."""

    def __init__(self, instance: str, methods: frozenset[str]) -> None:
        self._instance, self._methods = instance, methods
        self._asked: OrderedDict[Asked, tuple[float, bytes, asyncio.Task[Outcome]]] = OrderedDict()
        self._under_way = 0

    async def do(self, metadata: Mapping[str, Any], method: str, request: Message, work: Work) -> Outcome:
        """What `work` returns; of a repeated call, what it returned the first time. A call whose client went away is
        done all the same; what was refused with nothing done is tried anew. Invalid: the same id with another request.
        Superseded: first asked in another life. Exhausted: too many under way."""
        name, instance = metadata.get(REQUEST_ID), metadata.get(INSTANCE)
        if method not in self._methods or not isinstance(name, str) or instance is None:
            return await work()
        if instance != self._instance:
            raise Superseded(
                "the server was started anew since it was first asked for this, and does not know whether it was done: "
                "look whether it was, and ask again where it was not"
            )
        self._forget(time.monotonic() - _KEPT_SECONDS)
        who = caller.get()
        key = (None if who is None else who.principal, name)
        content = hashlib.blake2b(method.encode() + request.SerializeToString(deterministic=True)).digest()
        known = self._asked.get(key)
        if known is None:
            return await asyncio.shield(self._begin(key, content, work))
        if known[1] != content:
            raise Invalid(
                f"request id {name!r}: expected the request that it was first used for; got another"
            )
        return await asyncio.shield(known[2])

    def _begin(self, key: Asked, content: bytes, work: Work) -> asyncio.Task[Outcome]:
        if self._under_way >= _UNDER_WAY:
            raise Exhausted(
                f"expected at most {_UNDER_WAY} calls under way; try again later", retry_after=0.1
            )
        task = asyncio.get_running_loop().create_task(work())
        self._asked[key] = (time.monotonic(), content, task)
        self._under_way += 1
        task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: Asked, task: asyncio.Task[Outcome]) -> None:
        self._under_way -= 1
        if not task.cancelled() and task.exception() is None and task.result().nothing_done:
            self._asked.pop(key, None)

    def _forget(self, before: float) -> None:
        for key, (began, _, task) in list(self._asked.items()):
            if began > before:
                return
            if task.done():
                del self._asked[key]
