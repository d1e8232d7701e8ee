"""A call as the guard sees it: what it needs, how its messages are read and written, a stream while it is open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from steelyard_server.log import printable
from steelyard_server.runs.errors import Invalid, Missing
from steelyard_server.security import rules
from steelyard_server.security.caller import ANYONE, Caller
from steelyard_server.security.errors import Forbidden
from steelyard_server.security.evidence import Evidence
from steelyard_server.security.quotas import Account
from steelyard_server.security.rules import Row

Context = grpc.aio.ServicerContext[Any, Any]

_FIRST_SECONDS = 60.0
"""From the begin of a call to its first message. Whoever sends none holds nothing but this."""
_LONGEST_SLEEP = 5.0


@dataclass(frozen=True, slots=True)
class Call:
    """What is the same for all calls of one method."""

    method: str
    row: Row | None
    parser: Callable[[bytes], Any]
    serialiser: Callable[[Any], bytes]
    dataset_of: Callable[[str], str | None]

    @property
    def open(self) -> bool:
        return self.row is not None and self.row.open

    def parse(self, raw: bytes) -> Any:
        """Invalid for what is no such message. gRPC would call that INTERNAL, as if the fault were ours."""
        try:
            return self.parser(raw)
        except DecodeError as error:
            raise Invalid(f"expected a message of {self.method}: {error}") from None

    def judge(self, who: Caller | None, request: Any) -> None:
        """Raises where the caller may not do this."""
        if who is not None and who is not ANYONE:
            rules.judge(self.row, who.rights, request, self.dataset_of)

    def asked(self, request: Any) -> dict[str, str]:
        """The run and dataset that a request names, for the log: of one that is refused no handler says it."""
        needs = () if self.row is None or request is None else self.row.needs
        # The first of a kind: a fork names the run that it is of, and then the new one.
        return {
            need.kind: printable(rules.value_at(request, need.field))
            for need in reversed(needs)
            if not need.of_run
        }

    def answer(self, who: Caller | None, response: Any) -> bytes:
        """On the wire, with only what the caller may see."""
        if self.row is not None and who is not None and who is not ANYONE:
            response = rules.shown(self.row, who.rights, response)
        return self.serialiser(response)


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who was let in, by what, and by which generation of the access file. `who` is None of calls open to everyone."""

    who: Caller | None = None
    evidence: Evidence | None = None
    account: Account | None = None
    generation: int = 0


async def first_message(context: Context, seconds: float = _FIRST_SECONDS) -> bytes:
    """Invalid where none comes, or not in time."""
    try:
        async with asyncio.timeout(seconds):
            raw = await context.read()
    except TimeoutError:
        raise Invalid(f"expected a message within {_FIRST_SECONDS:.0f} seconds; got none") from None
    if raw is grpc.aio.EOF:
        raise Invalid("expected a message; got none")
    assert isinstance(raw, bytes)
    return raw


class Stream:
    """What a handler of a stream has for a context: its messages parsed, judged where they say what they are for, and
    paid for. For the event loop."""

    def __init__(
        self,
        call: Call,
        context: Context,
        admitted: Admitted,
    ) -> None:
        self.call, self.evidence = call, admitted.evidence
        self.who, self.account, self.generation = admitted.who, admitted.account, admitted.generation
        self._context = context
        self._began = time.monotonic()
        self._task = asyncio.current_task()
        self._awaits_join = call.row is not None and call.row.at_join
        self._judged: Any = None
        self.refused: dict[str, str] = {}
        """What was asked for, where it was refused. For the log, by the task of the call: another one may read."""
        self.ending: Exception | None = None
        """Why the guard ends it."""
        if not self._awaits_join and (call.row is None or not call.row.needs):
            self.call.judge(self.who, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def first(self) -> Any:
        """The one request of a stream of answers."""
        raw = await first_message(self._context)
        self._pay(raw)
        self._judged = self.call.parse(raw)
        self._judge_first()
        return self._judged

    async def read(self) -> Any:
        """As a context's. Invalid, Missing or Forbidden for what must not be read on."""
        await self.affordable()
        raw: Any
        if self._awaits_join:
            # Requests without a message in them do not begin the time anew.
            raw = await first_message(self._context, self._began + _FIRST_SECONDS - time.monotonic())
        else:
            raw = await self._context.read()
        if raw is grpc.aio.EOF:
            return raw
        self._pay(raw)
        request = self.call.parse(raw)
        if self._awaits_join and request.messages:
            self._awaits_join = False
            # Anything else than a Join is the handler's to refuse.
            self._judged = request.messages[0].join
            self._judge_first()
        return request

    async def requests(self) -> AsyncIterator[Any]:
        while (request := await self.read()) is not grpc.aio.EOF:
            yield request

    def write(self, message: Any) -> Awaitable[None]:
        data = self.call.serialiser(message)
        self._pay(data)
        return self._context.write(data)

    def _judge_first(self) -> None:
        try:
            self.call.judge(self.who, self._judged)
        except (Forbidden, Missing):
            self.refused = self.call.asked(self._judged)
            raise

    def judge_again(self, who: Caller, account: Account | None, generation: int) -> None:
        """Raises where the caller, as it is known by now, may not go on."""
        self.who, self.account, self.generation = who, account, generation
        if self._judged is not None or not (self.call.row and self.call.row.needs):
            self.call.judge(who, self._judged)

    @property
    def expired(self) -> bool:
        return self.who is not None and self.who.expired

    def end(self, why: Exception) -> None:
        """Ends the call with the status of `why`."""
        if self.ending is None and self._task is not None:
            self.ending = why
            self._task.cancel()

    def take_cancellation(self) -> Exception | None:
        """Why the guard cancelled the call; None where that was somebody else."""
        if self.ending is not None and self._task is not None:
            self._task.uncancel()
        return self.ending

    def _pay(self, data: bytes) -> None:
        if self.account is not None:
            self.account.spend_bytes(len(data))

    async def affordable(self) -> None:
        """Waits while the caller is over its quota of bytes."""
        while self.account is not None and (wait := self.account.wait_for_bytes(time.monotonic())) > 0:
            await asyncio.sleep(min(wait, _LONGEST_SLEEP))
