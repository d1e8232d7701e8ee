"""The guard: every call passes it. It tells who calls, judges whether they may, and holds them to their quota and the
server to its limits. The handlers behind it see only calls that are allowed.

Towards gRPC every handler becomes one that reads a stream, since that way the body of a call that is refused is never
read; on the wire nothing differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from structlog.contextvars import bind_contextvars

from steelyard_server.config import Settings
from steelyard_server.log import logger
from steelyard_server.runs.errors import Exhausted, Missing
from steelyard_server.security import rules
from steelyard_server.security.caller import Caller, caller
from steelyard_server.security.errors import Forbidden, Unauthenticated
from steelyard_server.security.gate import Gate
from steelyard_server.security.gatekeeper import Gatekeeper, Tally
from steelyard_server.security.quotas import UNLIMITED, Account, Accounts
from steelyard_server.service.errors import refusal_of
from steelyard_server.service.guarded import Admitted, Call, Context, Stream, first_message

Handler = Any  # grpc.RpcMethodHandler, whose stubs promise more than it has
Behaviour = Callable[[Any, Context], Awaitable[Any]]

_LOOK_SECONDS = 1.0
"""Between two looks at whether open streams are still allowed."""
_HEALTH_CALLS = 256
"""Of health under way: open to everyone, so bounded apart from the rest, and watchers apart from probes that ask."""

_log = logger(__name__)


class Guard(grpc.aio.ServerInterceptor):
    """For the event loop of the server that it guards."""

    def __init__(
        self, settings: Settings, gatekeeper: Gatekeeper, dataset_of: Callable[[str], str | None]
    ) -> None:
        """`dataset_of` a run: its dataset's name, or None where there is no such run."""
        self._gatekeeper = gatekeeper
        self._dataset_of = dataset_of
        self._accounts = Accounts()
        self._calls = Gate(settings.max_concurrent_calls, "calls under way", "max_concurrent_calls")
        self._streams = Gate(settings.max_open_streams, "streams open", "max_open_streams")
        self._health = Gate(_HEALTH_CALLS, "calls of health under way", "")
        self._watchers = Gate(_HEALTH_CALLS, "watchers of health", "")
        self._open: set[Stream] = set()
        self._looking: asyncio.Task[None] | None = None
        self._handlers: dict[str, Handler] = {}

    @property
    def tally(self) -> Tally:
        return self._gatekeeper.tally

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        if method not in self._handlers:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            self._handlers[method] = self._guarded(method, handler)
        return self._handlers[method]

    def _guarded(self, method: str, handler: Any) -> Handler:
        call = Call(
            method,
            rules.row(method),
            handler.request_deserializer,
            handler.response_serializer,
            self._dataset_of,
        )
        if not handler.request_streaming and not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(self._unary(call, handler.unary_unary))
        inner = handler.unary_stream or handler.stream_stream
        return grpc.stream_stream_rpc_method_handler(
            self._streaming(call, inner, one_request=not handler.request_streaming)
        )

    def _unary(self, call: Call, inner: Behaviour) -> Behaviour:
        gate = self._health if call.open else self._calls

        async def answer(_: Any, context: Context) -> bytes:
            try:
                admitted = await self._admit(call, context)
                # Read before the gate: whoever is slow to send keeps nobody else out.
                raw = await first_message(context)
                who, account = self._still(admitted)
                if account is not None:
                    account.spend_bytes(len(raw))
                with gate:
                    request = call.parse(raw)
                    try:
                        call.judge(who, request)
                    except (Forbidden, Missing):
                        bind_contextvars(**call.asked(request))
                        raise
                    data = call.answer(who, await inner(request, context))
            except grpc.aio.BaseError:
                raise
            except Exception as error:
                await context.abort(*refusal_of(error))
            if account is not None:
                account.spend_bytes(len(data))
            return data

        return answer

    def _streaming(self, call: Call, inner: Any, *, one_request: bool) -> Behaviour:
        gate = self._watchers if call.open else self._streams
        generates = inspect.isasyncgenfunction(inner)

        async def serve(_: Any, context: Context) -> None:
            stream: Stream | None = None
            try:
                admitted = await self._admit(call, context)
                with gate:
                    stream = Stream(call, context, admitted)
                    with self._watched(stream):
                        request = await stream.first() if one_request else stream.requests()
                        if generates:
                            async with contextlib.aclosing(inner(request, stream)) as responses:
                                async for response in responses:
                                    await stream.affordable()
                                    await stream.write(response)
                        else:
                            await inner(request, stream)
            except grpc.aio.BaseError:
                raise
            except Exception as error:
                await context.abort(*refusal_of(error))
            except asyncio.CancelledError:
                why = None if stream is None else stream.take_cancellation()
                if why is None:
                    raise
                await context.abort(*refusal_of(why))
            finally:
                if stream is not None:
                    bind_contextvars(**stream.refused)

        return serve

    async def _admit(self, call: Call, context: Context) -> Admitted:
        """Who calls, what shows it, and their account where they have a quota. Raises where they are not known, or are
        over it."""
        if call.open:
            return Admitted()
        generation = self._gatekeeper.generation
        who, evidence = await self._gatekeeper.identify(call.method, context)
        caller.set(who)
        if evidence is not None:
            bind_contextvars(principal=who.principal)
        account = self._account(who)
        over = None if account is None else account.begin_call(time.monotonic())
        if over is not None:
            part, wait = over
            self.tally.over_quota(who.principal, part)
            raise Exhausted(
                f"principal {who.principal!r} is over its quota of {part} a second; try again in {wait:.3f} s",
                retry_after=wait,
            )
        return Admitted(who, evidence, account, generation)

    def _still(self, admitted: Admitted) -> tuple[Caller | None, Account | None]:
        """Who was admitted, as they are known by now: they may have taken their time to send what they ask for."""
        who = admitted.who
        if who is None:
            return None, None
        if admitted.generation != self._gatekeeper.generation:
            who = self._gatekeeper.again(admitted.evidence)
        if who is None or who.expired:
            raise Unauthenticated
        return who, self._account(who)

    def _account(self, who: Caller) -> Account | None:
        if who.quota == UNLIMITED:
            return None
        return self._accounts.of(who.principal, who.quota, time.monotonic())

    # ---- streams that are open ----

    @contextmanager
    def _watched(self, stream: Stream) -> Iterator[None]:
        if not self._gatekeeper.guards or stream.call.open:
            yield
            return
        self._open.add(stream)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            self._open.discard(stream)
            # Where none is open there is nothing to look at, and the loop may be about to end.
            if not self._open and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    async def _look(self) -> None:
        """Ends streams whose token has expired, or whose caller may not do any more what they are for."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            generation = self._gatekeeper.generation
            for stream in list(self._open):
                over = self._over(stream, generation)
                if over is not None:
                    stream.end(over)
                    principal = None if stream.who is None else stream.who.principal
                    # Nobody looks any more where this raises, as it may where a log cannot be written.
                    with contextlib.suppress(Exception):
                        _log.info(
                            "stream_ended", method=stream.call.method, principal=principal, why=str(over)
                        )

    def _over(self, stream: Stream, generation: int) -> Exception | None:
        """Why it may not go on, by the access file of that generation; None where it may."""
        if stream.expired:
            return Unauthenticated("the token of this stream has expired; call again with a newer one")
        if stream.generation != generation:
            who = self._gatekeeper.again(stream.evidence)
            if who is None:
                return Unauthenticated()
            try:
                stream.judge_again(who, self._account(who), generation)
            # A bug, too, must not be what keeps a stream open.
            except Exception as error:
                return error
        return None
