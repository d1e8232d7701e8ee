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
from typing import Any

from google.protobuf.message import Message

from steelyard_server.runs.errors import Invalid, Superseded

REQUEST_ID = "x-request-id"
INSTANCE = "x-steelyard-instance"
_KEPT_SECONDS = 90.0
"""A client repeats a call for 45 s at most (transport.py)."""

Work = Callable[[], Coroutine[Any, Any, Any]]


class Once:
    """For the event loop. `instance` names this life of the server."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._asked: OrderedDict[str, tuple[float, bytes, asyncio.Task[Any]]] = OrderedDict()

    async def do(self, metadata: Mapping[str, Any], method: str, request: Message, work: Work) -> Any:
        """What `work` returns or raises; of a repeated call, what it did the first time. A call whose client went away
        is done all the same. Invalid: the same id with another request. Superseded: first asked in another life."""
        name, instance = metadata.get(REQUEST_ID), metadata.get(INSTANCE)
        if name is None or instance is None:
            return await work()
        if instance != self._instance:
            raise Superseded(
                "the server was started anew since it was first asked for this, and does not know whether it was done: "
                "look whether it was, and ask again where it was not"
            )
        self._forget(time.monotonic() - _KEPT_SECONDS)
        content = hashlib.blake2b(method.encode() + request.SerializeToString(deterministic=True)).digest()
        known = self._asked.get(name)
        if known is not None:
            if known[1] != content:
                raise Invalid(
                    f"request id {name!r}: expected the request that it was first used for; got another"
                )
            return await asyncio.shield(known[2])
        task = asyncio.get_running_loop().create_task(work())
        # Where nobody waits any more, nobody asks for its error.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._asked[name] = (time.monotonic(), content, task)
        return await asyncio.shield(task)

    def _forget(self, before: float) -> None:
        while self._asked:
            began, _, task = next(iter(self._asked.values()))
            if began > before or not task.done():
                return
            self._asked.popitem(last=False)
