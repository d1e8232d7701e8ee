"""A TCP proxy before a server that does to connections what networks do to them.

    with Proxy(server.address) as proxy:
        client = steelyard.connect(proxy.address)
        proxy.reset()                   # every connection ends with RST, wherever its frames are
        proxy.cut_after(5000)           # so does the one that carries the 5000th byte from now on
        with proxy.stalled(): ...       # connections stand, and nothing arrives
        proxy.slow(20_000)              # bytes a second, each way and connection
        proxy.orphan()                  # the server's side stays open with nobody behind it

One thread with an event loop of its own; every method may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
_CHUNK = 1 << 16
_SECONDS = 10.0
_RST = struct.pack("ii", 1, 0)
"""SO_LINGER on and 0 seconds: what is closed so ends with RST instead of FIN."""


@dataclass(eq=False)
class _Pair:
    near: socket.socket
    far: socket.socket
    task: asyncio.Task[None]
    orphaned: bool = False


class Proxy:
    """Listens on a free port of 127.0.0.1, and passes on to `target` (HOST:PORT)."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: set[_Pair] = set()
        self._orphans: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._rate = 0.0
        self._budget: int | None = None
        self._refusing = False
        self.cuts = 0
        """Connections that were ended by reset, cut_after or refuse."""

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._do(self._open)
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_SECONDS)
        self._loop.close()

    @property
    def connections(self) -> int:
        """Those that are open."""
        return len(self._pairs)

    def reset(self) -> int:
        """RST to both ends of every connection; how many there were."""
        return self._do(self._reset)

    def cut_after(self, size: int) -> None:
        """The connection that carries the `size`-th byte from now on, whichever way, ends behind it with RST."""
        self._do(self._set, "_budget", size)

    def slow(self, bytes_a_second: float) -> None:
        """Each way of each connection carries no more; 0: as much as comes."""
        self._do(self._set, "_rate", bytes_a_second)

    def refuse(self, refusing: bool = True) -> None:
        """New connections are reset at once."""
        self._do(self._set, "_refusing", refusing)

    def stall(self) -> None:
        """From now on nothing arrives anywhere, new connections included, and nobody is told."""
        self._do(self._set, "_passes", False)

    def heal(self) -> None:
        self._do(self._set, "_passes", True)

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        self.stall()
        try:
            yield
        finally:
            self.heal()

    def orphan(self) -> int:
        """The clients are gone, and the server is not told: its ends of the connections stay open. How many."""
        return self._do(self._orphan)

    # ---- on the loop ----

    async def _open(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._task(self._accept())

    async def _set(self, name: str, value: Any) -> None:
        if name == "_passes":
            (self._flowing.set if value else self._flowing.clear)()
        else:
            setattr(self, name, value)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in (self._listener, *self._orphans):
            _finish(one)

    async def _reset(self) -> int:
        pairs = list(self._pairs)
        for pair in pairs:
            self._break(pair)
        return len(pairs)

    async def _orphan(self) -> int:
        pairs = list(self._pairs)
        for pair in pairs:
            pair.orphaned = True
            self._break(pair)
        return len(pairs)

    async def _accept(self) -> None:
        while True:
            near, _ = await self._loop.sock_accept(self._listener)
            self._task(self._serve(near))

    async def _serve(self, near: socket.socket) -> None:
        if self._refusing:
            self.cuts += 1
            _finish(near)
            return
        far, task = socket.socket(), asyncio.current_task()
        assert task is not None
        pair = _Pair(near, far, task)
        self._pairs.add(pair)
        for one in (near, far):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._flowing.wait()
            await self._loop.sock_connect(far, self._target)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pump(pair, near, far))
                ways.create_task(self._pump(pair, far, near))
            near.close()  # in good order
            far.close()
        except* OSError:
            pass
        finally:
            # Only here, where nobody waits on them any more.
            self._pairs.discard(pair)
            _finish(near)
            if pair.orphaned:
                self._orphans.append(far)
            else:
                _finish(far)

    async def _pump(self, pair: _Pair, source: socket.socket, sink: socket.socket) -> None:
        while data := await self._loop.sock_recv(source, _CHUNK):
            await self._flowing.wait()
            cut = None
            if self._budget is not None:
                cut = self._budget if self._budget <= len(data) else None
                self._budget = None if cut is not None else self._budget - len(data)
            for piece in self._pieces(data[:cut]):
                await self._loop.sock_sendall(sink, piece)
                if self._rate:
                    await asyncio.sleep(len(piece) / self._rate)
                await self._flowing.wait()
            if cut is not None:
                self._break(pair)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        size = max(1, int(self._rate / 50)) if self._rate else _CHUNK
        return (data[first : first + size] for first in range(0, len(data), size))

    def _break(self, pair: _Pair) -> None:
        self.cuts += 1
        pair.task.cancel()

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _do(self, what: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        async def call() -> T:
            return await what(*arguments)

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(_SECONDS)


def _finish(one: socket.socket) -> None:
    """Closes it with RST, where it is open."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    one.close()
