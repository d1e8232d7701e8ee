"""The one module that knows LMDB (with pieces.py): tables of bytes, one writer thread, commits in groups.

    callers → write() → queue → writer thread → one transaction for all that waits → fsync → callbacks, in
    order

Why one thread: LMDB binds a write transaction to its thread and admits one at a time, and one fsync for many
writes is what makes `sync` affordable. LMDB is always in its default, synchronous mode; the faster ones lose
or damage data when the power goes. Durability `interval` acknowledges from the tail file (tail.py) and
commits later.

A commit that fails has an unknown outcome: what was queued is answered with StoreFailed, `generation` moves
on, the environment is closed, reopened and probed until a commit of the same size succeeds. No restart is
needed.

A map that may grow no further refuses (StoreFull) before LMDB would: the last of it is kept for what makes
room (room.py), so that a full store can always be emptied. A refused write was not applied.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import lmdb
import lmdb.verify

from . import creation, pieces
from .errors import (
    RecordDamaged,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFailed,
    StoreFull,
    StoreOverloaded,
    StoreTooNew,
)
from .gate import Gate
from .lockfile import LockFile
from .ops import Delete, DeleteRange, Fence, Op, Put, Table, check, u64, weight
from .room import PATHS, cost, headroom, reserve
from .tail import Tail

__all__ = [
    "FORMAT_VERSION",
    "Delete",
    "DeleteRange",
    "Durability",
    "Fence",
    "Op",
    "Put",
    "RecordDamaged",
    "Snapshot",
    "Store",
    "StoreBusy",
    "StoreDamaged",
    "StoreError",
    "StoreFailed",
    "StoreFull",
    "StoreOverloaded",
    "StoreStats",
    "StoreTooNew",
    "Table",
]

FORMAT_VERSION = 4
"""Of everything below the directory. A newer one is refused; raise it when an older program would misread. An older
one is read as it is and counts as this one from then on. 1 knew no segments of losses and no blank chunks; 2 no weight
that a draw gives, nothing that a weigh rule remembers, and no column that counts what was served; 3 no values in
pieces."""

Durability = Literal["sync", "interval"]
OnDurable = Callable[[BaseException | None], None]
Tables: TypeAlias = "dict[Table, lmdb._Database]"

MAX_GROUP_BYTES = 64 << 20
MAX_GROUP_WRITES = 4096
SIZE_PAGE = 1 << 12
MAX_PROBE_BYTES = 4 << 20
GROW_ABOVE = 0.6
MIN_MAP_SIZE = 64 << 10
"""Also the unit: a multiple of every page size in use."""
WAIT_SECONDS = 60.0
"""How long a caller waits for the writer before it is told so: commits, reads that need a flush, closing."""

_FORMAT = b"format"
_EPOCH = b"tail-epoch"
_PROBE = b"probe"
_FAILURES = (lmdb.Error, OSError, StoreFailed)

_FULL_BYTES = 1 << 20
"""A disk with less than this free is called full where a commit to it failed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Sizes in bytes. `used_bytes` is the high-water mark of the file, freed pages included; `live_bytes` are
    without them; both 0 while the environment is closed after a failure. `failures`: commits that did not succeed,
    those of tries to write again included.
    """

    map_size: int
    used_bytes: int
    live_bytes: int
    commits: int
    last_commit_seconds: float
    queue_bytes: int
    tail_bytes: int
    queue_writes: int
    failures: int
    max_map_size: int


@dataclass(slots=True)
class _Write:
    ops: Sequence[Op]
    on_durable: OnDurable
    now: bool
    size: int
    awaited: bool
    """Nothing that rests on it is written before its outcome is known."""
    frees: bool
    """It makes room, or leads to what does: it may take what is kept for that."""


@dataclass(slots=True)
class _Pending:
    """What the tail has acknowledged and LMDB has not. `epoch` is the one that its commit will write."""

    epoch: int
    puts: list[Put] = field(default_factory=list)
    size: int = 0
    due: float = 0.0


class Store:
    """Tables of bytes in one directory. For any thread of the process that opened it."""

    def __init__(
        self,
        directory: Path,
        durability: Durability,
        interval: float,
        map_size: int,
        max_map_size: int,
        max_queue_bytes: int,
    ) -> None:
        """Use Store.open."""
        self._directory = directory
        self._durability = durability
        self._interval = interval
        self._map_size = map_size - map_size % MIN_MAP_SIZE
        self._max_map_size = max(self._map_size, max_map_size - max_map_size % MIN_MAP_SIZE)
        # Above the limit where more than that is there already: emptying it must be possible.
        self._ceiling = self._max_map_size
        self._max_queue_bytes = max_queue_bytes
        self._process = os.getpid()
        self._gate = Gate()
        self._env: lmdb.Environment | None = None
        self._tables: Tables = {}
        # Guards everything below; the writer alone touches _pending and _tail.
        self._changed = threading.Condition()
        self._queue: deque[_Write] = deque()
        self._serving: deque[_Write] = deque()
        self._queue_bytes = 0
        self._stopping = False
        self._closed = False
        # Why the tail cannot be committed.
        self._full: StoreFull | None = None
        # Free bytes without which it is of no use that a run which was refused tries again.
        self._lacking = 0
        # How many of _serving go one by one: as one transaction they were too big for the map.
        self._singly = 0
        self._flush_wanted = False
        self._healthy = False
        self._failing: str | None = None
        self._generation = 0
        self._tailed = 0
        self._settled = 0
        self._commits = 0
        self._last_commit_seconds = 0.0
        self._failures = 0
        self._busy_since: float | None = None
        self.on_commit: Callable[[float], None] = lambda seconds: None
        """Told of the duration of each commit, on the writer thread. Must be quick and not raise."""
        self._lock = LockFile(directory)
        self._tail = Tail(directory / "tail")
        self._pending = _Pending(epoch=1)
        self._thread = threading.Thread(target=self._run, name=f"store-writer {directory}", daemon=True)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        durability: Durability = "sync",
        interval: float = 1.0,
        map_size: int = 1 << 30,
        max_map_size: int = 1 << 40,
        max_queue_bytes: int = 256 << 20,
    ) -> Store:
        """Opens or creates the store in `directory` and takes in what a killed process left in the tail.

        StoreBusy: another opener holds it. StoreTooNew: a newer program wrote it. StoreFailed: it cannot be
        opened or written. `interval` is in seconds.
        """
        if durability not in ("sync", "interval"):
            raise ValueError(f'durability must be "sync" or "interval", not {durability!r}')
        if map_size < MIN_MAP_SIZE:
            raise ValueError(f"map_size must be at least {MIN_MAP_SIZE} bytes, not {map_size}")
        if not interval > 0:
            raise ValueError(f"interval must be a number of seconds above 0, not {interval}")
        # Whoever could read it would know what is trained, and by what losses. One that is there keeps its rights.
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Before anything is written, the lock file included: a folder of a newer program stays as it is. What else
        # may be wrong is said when nobody else writes to it.
        with contextlib.suppress(StoreFailed, StoreDamaged):
            check_format(directory)
        store = cls(directory, durability, interval, map_size, max_map_size, max_queue_bytes)
        try:
            store._start()
        except BaseException:
            store._release()
            raise
        return store

    @property
    def healthy(self) -> bool:
        """False from a failed commit until one has succeeded again; reads and writes fail meanwhile."""
        return self._healthy

    @property
    def failing(self) -> str | None:
        """Why reads and writes fail, in words for an operator: the cause of the newest failure, and what is done about
        it; None where they do not. Never waits."""
        cause = self._failing
        if cause is None:
            return None
        return f"a commit failed, and no other has succeeded since: {cause}; it is tried again"

    def writer_busy_seconds(self) -> float:
        """How long the writer has been at one thing: a commit, or the callbacks of one. 0 where it waits for work, also
        for the next try after a failure; infinite where it has died. Never waits."""
        since = self._busy_since
        if self._thread.ident is not None and not self._thread.is_alive() and not self._closed:
            return math.inf
        return 0.0 if since is None else max(0.0, time.monotonic() - since)

    @property
    def generation(self) -> int:
        """Moves on whenever a write was lost or doubtful: what is held in memory must be loaded again."""
        return self._generation

    def write(
        self,
        ops: Sequence[Op],
        on_durable: OnDurable,
        *,
        now: bool = False,
        awaited: bool = False,
        frees: bool = False,
    ) -> None:
        """Queues `ops` as one transaction, behind all that was queued before.

        `on_durable` is called once, from the writer thread, in queue order: with None when the ops are
        durable, or with the StoreError. It must be quick, and must not read the store or wait for it. `now`
        asks for LMDB's own commit where durability is `interval`. `awaited` promises that nothing which rests
        on these ops is written before their outcome is known: where they are refused for want of room, no
        fence falls. `frees` says that they make room, or lead to what does; ops that only delete always do.
        Blocks while the queue is full; StoreOverloaded after WAIT_SECONDS, and StoreError when the store is
        closed: then `on_durable` is not called.
        """
        self._check_process()
        for op in ops:
            check(op)
        frees = frees or not any(isinstance(op, Put) for op in ops)
        write = _Write(ops, on_durable, now, sum(map(weight, ops)), awaited, frees)
        with self._changed:
            self._await_room(write.size)
            self._queue.append(write)
            self._queue_bytes += write.size
            self._changed.notify_all()

    def commit(self, ops: Sequence[Op], *, frees: bool = False) -> None:
        """Writes `ops` now and waits. StoreError as on_durable would get; StoreFailed also when it takes too
        long.
        """
        if threading.current_thread() is self._thread:
            raise StoreError(
                "commit() was called from a durability callback; the writer cannot wait for itself"
            )
        done = threading.Event()
        outcome: list[BaseException | None] = []

        def settle(error: BaseException | None) -> None:
            outcome.append(error)
            done.set()

        self.write(ops, settle, now=True, awaited=True, frees=frees)
        if not done.wait(WAIT_SECONDS):
            raise StoreFailed(
                f"{len(ops)} ops were not durable within {WAIT_SECONDS} s; they may yet become so"
            )
        if outcome[0] is not None:
            raise outcome[0]

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value under `key`, or None."""
        with self._reading() as (txn, tables):
            return _get(txn, tables, table, key)

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values under `keys`, all as of one moment."""
        with self._reading() as (txn, tables):
            return [_get(txn, tables, table, key) for key in keys]

    def scan(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """Rows of [start, stop) in key order, or from the last one down: at most `limit`. Page with it."""
        with self._reading() as (txn, tables), txn.cursor(db=tables[table]) as cursor:
            return [
                (key, _whole(txn, tables, cursor.value()))
                for key in _walk(cursor, start, stop, reverse, limit)
            ]

    def keys(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> list[bytes]:
        """As scan, without reading the values."""
        with self._reading() as (txn, tables), txn.cursor(db=tables[table]) as cursor:
            return list(_walk(cursor, start, stop, reverse, limit))

    def last_of(
        self, table: Table, ranges: Sequence[tuple[bytes, bytes]]
    ) -> list[tuple[bytes, bytes] | None]:
        """The last row of each [start, stop), all as of one moment."""
        with self._reading() as (txn, tables), txn.cursor(db=tables[table]) as cursor:
            rows = [_last(cursor, start, stop) for start, stop in ranges]
            return [None if row is None else (row[0], _whole(txn, tables, row[1])) for row in rows]

    def size_of(self, table: Table, start: bytes, stop: bytes) -> int:
        """Bytes of the keys and values of [start, stop). A short transaction a page, so not of one moment where others
        write; about a microsecond a row.
        """
        size = 0
        while start < stop:
            with self._reading() as (txn, tables), txn.cursor(db=tables[table]) as cursor:
                keys = 0
                for key in _walk(cursor, start, stop, False, SIZE_PAGE):
                    keys, start = keys + 1, key + b"\0"
                    size += len(key) + pieces.length(cursor.value())
            if keys < SIZE_PAGE:
                break
        return size

    def check_space(self, size: int, *, spare: bool = False) -> None:
        """StoreFull where there is no room for ops that take about `size` bytes, to be committed in parts. `spare`:
        they can be done without, and leave what is kept for runs under way."""
        live, needed = self._live_bytes(), size + PATHS
        kept = headroom(self._max_map_size) if spare else reserve(self._max_map_size)
        if live + needed > self._max_map_size - kept:
            raise self._no_room(live, needed, kept)

    def check_headroom(self, what: str, ops: Sequence[Op]) -> None:
        """StoreFull where `ops`, which make something new, would take what is kept for what there is already.

        `what` names them in the message. Changes nothing; others may write before they are written.
        """
        kept = headroom(self._max_map_size)
        needed = cost(ops) + PATHS
        live = self._live_bytes()
        if live + needed > self._max_map_size - kept:
            raise StoreFull(
                f"no room for {what}: {live} bytes are used, it takes about {needed}, and of max_map_size_bytes "
                f"({self._max_map_size}) the last {kept} are kept for the runs that there are: delete runs or "
                "raise max_map_size_bytes"
            )

    @property
    def full(self) -> StoreFull | None:
        """Why runs find no room to write; None where they do. Never waits for the disk."""
        if not self._healthy:
            return None
        live, needed = self._live_bytes(), max(self._lacking, 2 * PATHS)
        if live + needed > self._room():
            return self._no_room(live, needed)
        self._lacking = 0
        return None

    def stats(self) -> StoreStats:
        """Figures of this moment. Never waits for the disk."""
        self._check_process()
        with self._gate.shared(WAIT_SECONDS):
            used = _used_bytes(self._env) if self._env is not None else 0
            live = self._measure() if self._env is not None else 0
        with self._changed:
            return StoreStats(
                map_size=self._map_size,
                used_bytes=used,
                live_bytes=live,
                commits=self._commits,
                last_commit_seconds=self._last_commit_seconds,
                queue_bytes=self._queue_bytes,
                tail_bytes=self._tail.size,
                queue_writes=len(self._queue),
                failures=self._failures,
                max_map_size=self._max_map_size,
            )

    def close(self, timeout: float = WAIT_SECONDS) -> None:
        """Commits what is queued, then lets the directory go. Idempotent.

        StoreFailed when the writer does not finish within `timeout` seconds; the directory stays held then.
        """
        self._check_process()
        with self._changed:
            self._stopping = self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise StoreFailed(
                f"{self._directory}: {self._queue_bytes} bytes were still queued after {timeout} s"
            )
        self._release()

    # Callers' side.

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise StoreError(
                f"{self._directory} was opened by process {self._process}; "
                f"a forked child ({os.getpid()}) may not use it"
            )

    def _await_room(self, size: int) -> None:
        def has_room() -> bool:
            return self._stopping or not self._queue or self._queue_bytes + size <= self._max_queue_bytes

        # The writer must not wait for itself.
        patience = 0.0 if threading.current_thread() is self._thread else WAIT_SECONDS
        if not self._changed.wait_for(has_room, patience):
            raise StoreOverloaded(
                f"{self._queue_bytes} bytes were queued for {patience} s; "
                f"a write of {size} bytes would pass the limit of {self._max_queue_bytes}"
            )
        if self._stopping:
            raise StoreError(f"{self._directory} is closed")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[tuple[lmdb.Transaction[bytes], Tables]]:
        """A short read transaction. In `interval`, commits first what the tail alone holds: about a
        millisecond.
        """
        self._check_process()
        self._settle()
        with self._gate.shared(WAIT_SECONDS):
            if self._env is None or not self._healthy:
                raise self._unreadable()
            try:
                with self._env.begin() as txn:
                    yield txn, self._tables
            except lmdb.Error as error:
                raise RecordDamaged(f"{self._directory}", f"LMDB could not read: {error}") from error

    def _unreadable(self) -> StoreFailed:
        return StoreFailed(
            f"{self._directory} cannot be read until a commit has succeeded again: {self._failing or 'it is closed'}"
        )

    def _settle(self) -> None:
        with self._changed:
            target = self._tailed
            if self._settled >= target:
                return
            if threading.current_thread() is self._thread:
                raise StoreError("a durability callback read the store; the writer cannot wait for itself")
            self._flush_wanted = True
            self._changed.notify_all()

            def settled() -> bool:
                return self._settled >= target or not self._healthy or self._full is not None

            if not self._changed.wait_for(settled, WAIT_SECONDS):
                raise StoreFailed(
                    f"acknowledged writes were not committed within {WAIT_SECONDS} s; cannot read yet"
                )
            if self._settled < target and self._full is not None:
                raise self._full

    def forget_stale_readers(self) -> int:
        """Has pages that only processes read which died be used again: a child that was killed, say. How many there
        were. The writer looks for them before each commit."""
        with self._gate.shared(WAIT_SECONDS):
            return 0 if self._env is None else int(self._env.reader_check())

    # How full it is.

    def _room(self) -> int:
        """Bytes that may be live before only what makes room is taken."""
        return self._max_map_size - reserve(self._max_map_size)

    def _live_bytes(self) -> int:
        """Exact only near the end of the map; where even the high-water mark is far from it, that mark."""
        with self._gate.shared(WAIT_SECONDS):
            if self._env is None or not self._healthy:
                raise self._unreadable()
            used = _used_bytes(self._env)
            return used if used < self._max_map_size // 2 else self._measure()

    def _measure(self) -> int:
        """Bytes of the pages that are in use. Some 20 microseconds. Within the gate, or on the writer thread."""
        assert self._env is not None
        with self._env.begin() as txn:
            return _pages_in_use(txn, self._tables) * int(self._env.stat()["psize"])

    def _no_room(self, live: int, needed: int, kept: int | None = None) -> StoreFull:
        kept = kept or reserve(self._max_map_size)
        return StoreFull(
            f"the store in {self._directory} is full: {live} bytes are used, what is to be written needs about "
            f"{needed}, and of max_map_size_bytes ({self._max_map_size}) the last {kept} "
            "are kept for what matters more: delete runs or bookmarks, or raise max_map_size_bytes"
        )

    # Opening, reopening, letting go.

    def _start(self) -> None:
        try:
            if creation.exists(self._directory):
                # Once more, now that nobody else may change it.
                check_whole(self._directory)
                check_format(self._directory)
            else:
                creation.create_whole(self._directory, self._make_environment)
            self._open_environment()
            self._take_in_tail()
        except _FAILURES as error:
            raise StoreFailed(f"{self._directory} could not be opened: {error}") from error
        self._healthy = True
        self._thread.start()

    def _make_environment(self, directory: Path) -> None:
        env = lmdb.open(str(directory), map_size=self._map_size, max_dbs=len(Table))
        try:
            meta = env.open_db(Table.META.encode())
            with env.begin(write=True) as txn:
                txn.put(_FORMAT, u64(FORMAT_VERSION), db=meta)
        finally:
            env.close()

    def _open_environment(self) -> None:
        env = lmdb.open(
            str(self._directory),
            map_size=self._map_size,
            max_dbs=len(Table),
            max_readers=512,
            max_spare_txns=8,
        )
        self._env = env
        self._map_size = max(self._map_size, env.info()["map_size"])
        beyond = _used_bytes(env) + reserve(self._max_map_size)
        self._ceiling = max(self._max_map_size, beyond + -beyond % MIN_MAP_SIZE)
        with env.begin(write=True) as txn:
            self._tables = {table: env.open_db(table.encode(), txn=txn) for table in Table}
            if txn.get(_FORMAT, db=self._tables[Table.META]) != u64(FORMAT_VERSION):
                txn.put(_FORMAT, u64(FORMAT_VERSION), db=self._tables[Table.META])
        for place in (self._directory, self._directory.parent):
            creation.sync_directory(place)

    def _take_in_tail(self) -> None:
        """Commits what the tail of a killed process holds."""
        self._pending = _Pending(self._committed_epoch() + 1)
        self._pending.puts = self._tail.read(self._pending.epoch)
        self._pending.size = sum(map(weight, self._pending.puts))
        self._flush()

    def _committed_epoch(self) -> int:
        assert self._env is not None
        with self._env.begin() as txn:
            return int.from_bytes(txn.get(_EPOCH, default=b"", db=self._tables[Table.META]), "big")

    def _release(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None
        self._healthy = False
        self._tail.close()
        self._lock.release()

    # The writer thread.

    def _run(self) -> None:
        try:
            while self._take():
                self._serve()
            if self._healthy:
                self._guarded_flush([])
            self._answer(
                self._drain(), StoreFailed(f"{self._directory} was closed before it could write again")
            )
        except BaseException as error:
            log.exception("%s: the writer died", self._directory)
            self._mark_failed(str(error))
            self._stopping = True
            self._answer(self._drain(), StoreFailed(f"the writer of {self._directory} died: {error!r}"))

    def _take(self) -> bool:
        """Moves the next writes, oldest first, to `_serving`; none when it is time to flush.

        False when the store is closed and nothing waits.
        """
        with self._changed:
            while not self._queue:
                wait = self._pending.due - time.monotonic() if self._pending.puts else None
                if (self._flush_wanted and self._pending.puts) or (wait is not None and wait <= 0):
                    self._busy_since = time.monotonic()
                    return True
                self._flush_wanted = False
                if self._stopping:
                    return False
                self._busy_since = None
                self._changed.wait(wait)
            self._busy_since = time.monotonic()
            size = 0
            while self._queue and len(self._serving) < MAX_GROUP_WRITES and size < MAX_GROUP_BYTES:
                self._serving.append(self._queue.popleft())
                size += self._serving[-1].size
            self._queue_bytes -= size
            self._changed.notify_all()
            return True

    def _serve(self) -> None:
        """Applies what was taken, in order. Every write of it is answered, whatever happens."""
        while self._serving and self._healthy:
            tailed = self._may_wait(self._serving[0])
            batch = self._refuse_crowding(self._refuse_fenced(self._next_batch(tailed)))
            if not batch:
                continue
            if tailed and not self._full:
                self._append_to_tail(batch)
            elif self._guarded_flush(batch):
                self._commit_batch(batch)
        if self._healthy and self._pending.puts and self._flush_due():
            self._guarded_flush([])

    def _next_batch(self, tailed: bool) -> list[_Write]:
        batch: list[_Write] = []
        while self._serving and self._may_wait(self._serving[0]) == tailed and not (batch and self._singly):
            batch.append(self._serving.popleft())
        self._singly = max(0, self._singly - len(batch))
        return batch

    def _may_wait(self, write: _Write) -> bool:
        """Whether the tail may acknowledge it."""
        deferred = self._durability == "interval" and not write.now
        return deferred and all(isinstance(op, Put | Fence) for op in write.ops)

    def _flush_due(self) -> bool:
        big = self._pending.size > MAX_GROUP_BYTES
        return big or self._flush_wanted or time.monotonic() >= self._pending.due

    def _refuse_fenced(self, batch: list[_Write]) -> list[_Write]:
        """Answers the writes whose fence is of an older generation; returns the others."""
        live = [write for write in batch if self._holds(write)]
        refused = [write for write in batch if not self._holds(write)]
        self._answer(
            refused, StoreFailed("an earlier write failed; what this one was computed from must be reloaded")
        )
        return live

    def _holds(self, write: _Write) -> bool:
        return all(op.generation == self._generation for op in write.ops if isinstance(op, Fence))

    def _refuse_crowding(self, batch: list[_Write]) -> list[_Write]:
        """The writes for which there is room, up to the first for which there is none. Where that is the very
        first, answers it; else it comes to its turn when those before it are durable.
        """
        assert self._env is not None
        room, size = self._room(), 2 * self._pending.size + sum(2 * write.size for write in batch)
        if not batch or _used_bytes(self._env) + PATHS + size <= room:
            return batch
        if self._pending.puts and not self._guarded_flush(batch):
            return []
        live = self._measure()
        for place, write in enumerate(batch):
            needed = cost(write.ops)
            if not write.frees and live + needed + PATHS > room:
                taken, later = batch[:place], batch[place:]
                if not taken:
                    self._refuse_full([later.pop(0)], self._no_room(live, needed))
                self._serving.extendleft(reversed(later))
                return taken
            live += needed
        return batch

    def _append_to_tail(self, batch: list[_Write]) -> None:
        writes = [[op for op in write.ops if isinstance(op, Put)] for write in batch]
        if not any(writes):
            # Fences alone: there is nothing that a reader would have to wait for.
            self._answer(batch, None)
            return
        try:
            self._tail.append(self._pending.epoch, writes)
        except OSError as error:
            log.warning("%s: the tail took no more (%s); committing instead", self._directory, error)
            if self._guarded_flush(batch):
                self._commit_batch(batch)
            return
        with self._changed:
            if not self._pending.puts:
                self._pending.due = time.monotonic() + self._interval
            for puts in writes:
                self._pending.puts.extend(puts)
            self._pending.size += sum(write.size for write in batch)
            self._tailed += len(batch)
        self._answer(batch, None)

    def _flush(self) -> None:
        """Commits what the tail holds, then empties it."""
        if self._pending.puts or self._tail.spoilt:
            epoch = Put(Table.META, _EPOCH, u64(self._pending.epoch))
            self._transact([*self._pending.puts, epoch], self._pending.size)
            self._forget_pending(self._pending.epoch)
        elif self._tail.size:
            self._tail.clear()

    def _forget_pending(self, committed: int) -> None:
        # First, so that whoever is woken finds the tail empty.
        self._tail.clear()
        with self._changed:
            self._pending = _Pending(committed + 1)
            self._settled = self._tailed
            self._flush_wanted = False
            self._full = None
            self._changed.notify_all()

    def _commit_batch(self, batch: list[_Write]) -> None:
        def commit() -> None:
            self._transact([op for write in batch for op in write.ops], sum(write.size for write in batch))

        try:
            if self._guarded(commit, batch):
                self._answer(batch, None)
        except StoreFull as error:
            if len(batch) == 1:
                self._refuse_full(batch, error)
                return
            # One big write must not fail the others, least of all the deletes that would make room.
            self._serving.extendleft(reversed(batch))
            self._singly = len(batch)

    def _guarded_flush(self, batch: list[_Write]) -> bool:
        """As _guarded. What the tail has acknowledged stays there when the map is full."""
        try:
            return self._guarded(self._flush, batch)
        except StoreFull as error:
            with self._changed:
                self._full = error
                self._flush_wanted = False
                self._pending.due = time.monotonic() + self._interval
                self._changed.notify_all()
            self._refuse_full(batch, error)
            return False

    def _refuse_full(self, batch: list[_Write], error: StoreFull) -> None:
        log.error("%s: %s", self._directory, error)
        if any(not write.awaited for write in batch):
            with self._changed:
                self._generation += 1
            # Also where LMDB alone found no room, in pieces as it may be: until some more of it is free.
            size = max(cost(write.ops) for write in batch)
            self._lacking = max(size + PATHS, self._room() - self._measure() + PATHS)
        self._answer(batch, error)

    def _guarded(self, action: Callable[[], None], batch: list[_Write]) -> bool:
        """True when `action` succeeded. False: the outcome is unknown, all that waits was answered so, and
        the store has recovered or is closing. StoreFull passes: nothing was applied.
        """
        try:
            action()
        except StoreFull:
            raise
        except _FAILURES as error:
            cause = _cause(error, self._directory)
            log.error("%s: a commit failed, its outcome is unknown: %s", self._directory, cause)
            self._mark_failed(cause)
            failure = StoreFailed(f"a commit to {self._directory} failed, its outcome is unknown: {cause}")
            self._answer([*batch, *self._drain()], failure)
            self._recover(failure, max(sum(write.size for write in batch), self._pending.size))
            return False
        return True

    def _transact(self, ops: Sequence[Op], size: int) -> None:
        """One durable transaction; the map grows as needed. StoreFull: nothing was applied."""
        self._grow_ahead(size)
        while True:
            assert self._env is not None
            started = self._busy_since = time.monotonic()
            # Whoever was killed while it read the data (a backup, a tool) would keep the pages of its moment for ever,
            # and the file would grow by all that is written. It costs nothing where nobody was.
            self._env.reader_check()
            try:
                with self._env.begin(write=True, buffers=True) as txn:
                    for op in ops:
                        _apply(txn, self._tables, op)
                break
            except lmdb.MapFullError:
                self._grow(self._map_size * 2)
        ended = time.monotonic()
        with self._changed:
            self._commits += 1
            self._last_commit_seconds = ended - started
        self.on_commit(self._last_commit_seconds)

    def _grow_ahead(self, size: int) -> None:
        """Growing between transactions is cheap; running into the end costs the transaction that did."""
        assert self._env is not None
        wanted = self._map_size
        while _used_bytes(self._env) + size > GROW_ABOVE * wanted and wanted < self._ceiling:
            wanted *= 2
        if wanted > self._map_size:
            self._grow(wanted)

    def _grow(self, wanted: int) -> None:
        if self._map_size >= self._ceiling:
            raise StoreFull(
                f"the store in {self._directory} is full: its map has {self._map_size} bytes, the most that "
                "max_map_size_bytes allows: delete runs or bookmarks, or raise max_map_size_bytes"
            )
        assert self._env is not None
        size = min(wanted, self._ceiling)
        with self._gate.exclusive(WAIT_SECONDS):
            self._env.set_mapsize(size)
        log.info("%s: the map grew from %d to %d bytes", self._directory, self._map_size, size)
        self._map_size = size

    # After a failure.

    def _mark_failed(self, cause: str) -> None:
        with self._changed:
            self._healthy = False
            self._failing = cause
            self._failures += 1
            self._generation += 1
            self._changed.notify_all()

    def _drain(self) -> list[_Write]:
        with self._changed:
            left = [*self._serving, *self._queue]
            self._serving.clear()
            self._queue.clear()
            self._queue_bytes = 0
            self._changed.notify_all()
            return left

    def _recover(self, failure: StoreFailed, size: int) -> None:
        """Reopens and probes, ever more slowly, until a commit succeeds or the store is closed."""
        delay = 0.05
        while not self._pause(delay, failure):
            try:
                self._reopen()
                self._probe(size)
            except (*_FAILURES, StoreFull) as error:
                cause = _cause(error, self._directory)
                log.warning("%s: still failing: %s", self._directory, cause)
                with self._changed:
                    self._failing = cause
                    self._failures += 1
                delay = min(delay * 2, 2.0)
                continue
            with self._changed:
                self._healthy = True
                self._failing = None
                self._changed.notify_all()
            log.warning("%s: writes again", self._directory)
            return

    def _pause(self, delay: float, failure: StoreFailed) -> bool:
        """Waits, failing what is queued meanwhile. True when the store is to be closed."""
        self._busy_since = None
        deadline = time.monotonic() + delay
        while (left := deadline - time.monotonic()) > 0:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue) or self._stopping, left)
            self._answer(self._drain(), failure)
            if self._stopping:
                return True
        return self._stopping

    def _reopen(self) -> None:
        self._busy_since = time.monotonic()
        with self._gate.exclusive(WAIT_SECONDS):
            if self._env is not None:
                self._env.close()
                self._env = None
            self._open_environment()
        if self._pending.puts and self._committed_epoch() >= self._pending.epoch:
            self._forget_pending(self._pending.epoch)

    def _probe(self, size: int) -> None:
        """A commit as big as the one that failed: a small one may find room on a disk that is full."""
        self._flush()
        value = bytes(min(size, MAX_PROBE_BYTES))
        self._transact([Put(Table.META, _PROBE, value)], len(value))
        self._transact([Delete(Table.META, _PROBE)], 0)

    def _answer(self, writes: Sequence[_Write], error: BaseException | None) -> None:
        for write in writes:
            try:
                write.on_durable(error)
            except Exception:
                log.exception("%s: a durability callback raised; going on", self._directory)


def _cause(error: BaseException, directory: Path) -> str:
    """`error` in words that name a full disk: LMDB calls a write that found room for its first part an input/output
    error."""
    words = str(error)
    with contextlib.suppress(OSError):
        found = os.statvfs(directory)
        if found.f_bavail * found.f_frsize < _FULL_BYTES and os.strerror(errno.ENOSPC) not in words:
            words += f" ({os.strerror(errno.ENOSPC)})"
    return words


class Snapshot(Store):
    """What a directory held at one moment, to be read for as long as that takes while another process goes on writing,
    or of one that nobody writes. Pages that were freed since are not used again meanwhile, so the file grows.

    For one thread. Nothing can be written. What the tail alone holds is not in it. Read it in a process that may die:
    a truncated file kills its reader by SIGBUS.
    """

    def __init__(self, directory: Path, *, shared: bool) -> None:
        """`shared`: somebody may write to it, and is told by LMDB's lock file of this reader. StoreFailed: it is no
        store that can be opened. StoreTooNew."""
        self._directory = directory
        self._process = os.getpid()
        self._gate = Gate()
        self._generation = 0
        self._healthy = True
        self._failing = None
        creation.is_short(directory)
        try:
            env = lmdb.open(
                str(directory),
                readonly=True,
                create=False,
                lock=shared,
                max_dbs=len(Table),
                max_readers=512,
                max_spare_txns=0,
                readahead=False,
            )
            self._env = env
            self._txn = env.begin()
            _refuse_newer(directory, env, self._txn)
            self._tables = {}
            for table in Table:
                with contextlib.suppress(lmdb.NotFoundError):  # an older program knew fewer
                    self._tables[table] = env.open_db(table.encode(), txn=self._txn, create=False)
        except lmdb.Error as error:
            raise StoreFailed(f"{directory} could not be opened: {error}") from error

    @property
    def format(self) -> int:
        return int.from_bytes(self.get(Table.META, _FORMAT) or b"", "big")

    @property
    def transaction(self) -> int:
        """LMDB's number of the last commit that is in it."""
        return self._txn.id()

    def entries(self, table: Table) -> int:
        """How many rows LMDB counts in a table."""
        with self._reading() as (txn, tables):
            return int(txn.stat(tables[table])["entries"]) if table in tables else 0

    def pages(self) -> tuple[int, int, int]:
        """(bytes of a page, pages up to the last that was ever used, pages in use)."""
        assert self._env is not None
        size = int(self._env.stat()["psize"])
        return size, self._env.info()["last_pgno"] + 1, _pages_in_use(self._txn, self._tables)

    def pieces(self) -> int:
        """How many rows of table PIECES the values want that are in pieces. Reads every row of the others."""
        wanted = 0
        with self._reading() as (txn, tables):
            for table in tables.keys() - {Table.PIECES}:
                with txn.cursor(db=tables[table]) as cursor:
                    wanted += sum(map(pieces.count, cursor.iternext(keys=False)))
        return wanted

    def copy(self, descriptor: int) -> None:
        """Writes the whole, without the pages that are free, to a pipe or a file: one that LMDB can open. OSError
        where it takes no more; StoreFailed where the pages cannot be read."""
        assert self._env is not None
        try:
            self._env.copyfd(descriptor, compact=True, txn=self._txn)
        except lmdb.Error as error:
            raise StoreFailed(f"{self._directory} could not be copied: {error}") from error

    def get(self, table: Table, key: bytes) -> bytes | None:
        return super().get(table, key) if table in self._tables else None

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        return super().get_many(table, keys) if table in self._tables else [None] * len(keys)

    def scan(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        found = table in self._tables
        return super().scan(table, start, stop, reverse=reverse, limit=limit) if found else []

    def keys(
        self, table: Table, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> list[bytes]:
        found = table in self._tables
        return super().keys(table, start, stop, reverse=reverse, limit=limit) if found else []

    def last_of(
        self, table: Table, ranges: Sequence[tuple[bytes, bytes]]
    ) -> list[tuple[bytes, bytes] | None]:
        return super().last_of(table, ranges) if table in self._tables else [None] * len(ranges)

    def walk(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """Every row of a table, in the order in which LMDB has them. RecordDamaged where it cannot go on."""
        if table in self._tables:
            with self._reading() as (txn, tables), txn.cursor(db=tables[table]) as cursor:
                for key, value in cursor:
                    yield key, value if table is Table.PIECES else _whole(txn, tables, value)

    def walk_range(self, table: Table, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The rows of [start, stop), as `walk`."""
        if table in self._tables:
            with self._reading() as (txn, tables), txn.cursor(db=tables[table]) as cursor:
                for key in _walk(cursor, start, stop, False, None):
                    yield key, _whole(txn, tables, cursor.value())

    def write(
        self,
        ops: Sequence[Op],
        on_durable: OnDurable,
        *,
        now: bool = False,
        awaited: bool = False,
        frees: bool = False,
    ) -> None:
        raise StoreError(f"{self._directory} was opened to be read")

    def commit(self, ops: Sequence[Op], *, frees: bool = False) -> None:
        raise StoreError(f"{self._directory} was opened to be read")

    def close(self, timeout: float = WAIT_SECONDS) -> None:
        self._txn.abort()
        if self._env is not None:
            self._env.close()
            self._env = None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[tuple[lmdb.Transaction[bytes], Tables]]:
        try:
            yield self._txn, self._tables
        except lmdb.Error as error:
            raise RecordDamaged(f"{self._directory}", f"LMDB could not read: {error}") from error


def check_format(directory: Path) -> None:
    """StoreTooNew where a newer program wrote `directory`, StoreFailed where it is no store, StoreDamaged where that
    cannot be told. Writes nothing at all, and does nothing where there is no environment yet, or only a part of one."""
    if not creation.exists(directory) or creation.is_short(directory):
        return
    try:
        env = lmdb.open(str(directory), max_dbs=len(Table), readonly=True, lock=False, create=False)
    except lmdb.Error as error:
        raise StoreDamaged(directory, str(error)) from error
    try:
        with env.begin() as txn:
            _refuse_newer(directory, env, txn)
    except lmdb.Error as error:
        raise StoreDamaged(directory, str(error)) from error
    finally:
        env.close()


def _refuse_newer(directory: Path, env: lmdb.Environment, txn: lmdb.Transaction[bytes]) -> None:
    if txn.stat()["entries"] == 0:
        return
    try:
        found = txn.get(_FORMAT, db=env.open_db(Table.META.encode(), txn=txn, create=False))
    except lmdb.NotFoundError:
        found = None
    if found is None:
        raise StoreFailed(f"{directory}/data.mdb has no format version: it is not a Steelyard store")
    version = int.from_bytes(found, "big")
    if version > FORMAT_VERSION:
        raise StoreTooNew(f"{directory} has format {version}; this program knows {FORMAT_VERSION} and older")


def check_whole(directory: Path) -> None:
    """StoreDamaged where the data file ends before its last page: to read there would kill the process. Nobody may
    write to it. Costs a look at its first pages, and a walk through it where it is short."""
    if creation.is_short(directory):
        found = faults(directory)
        if found:
            raise StoreDamaged(directory, f"{creation.DATA} is shorter than what is in it; {found[0]}")


def faults(directory: Path) -> list[str]:
    """What is wrong with the pages of the data file: how they hang together, their heads, the order of keys, which are
    free; not what the values say. Nobody may write to it. Reads it by read(), so no damage can kill; some 100 MB a
    second.
    """
    path = directory / creation.DATA
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            found, end = _verified(file, directory, size)
    except (lmdb.verify.VerifyError, struct.error, IndexError) as error:
        return [str(error)]
    if not found and end > size:
        found.append(f"pages up to byte {end} are in use, and the file ends at byte {size}")
    return found


def _verified(file: Any, directory: Path, size: int) -> tuple[list[str], int]:
    """What LMDB's verification finds, and where the last page in use ends: its public function does not tell, and of a
    value of several pages it looks at the first one (3.0)."""
    try:
        walk: Any = lmdb.verify._Verifier(file, size)  # type: ignore[no-untyped-call]
        found: list[str] = list(walk.verify())
        return found, (walk.live.rfind(1) + 1) * walk.psize
    except (AttributeError, TypeError):
        # The insides of another release. Then every page must be there, also one that was never used.
        found = list(lmdb.verify.verify(str(directory)))  # type: ignore[no-untyped-call]
        return found, size + int(creation.is_short(directory))


def _apply(txn: lmdb.Transaction[memoryview], tables: Tables, op: Op) -> None:
    if isinstance(op, Put):
        pieces.put(txn, tables[op.table], tables[Table.PIECES], op.key, op.value)
    elif isinstance(op, Delete):
        pieces.delete(txn, tables[op.table], tables[Table.PIECES], op.key)
    elif isinstance(op, DeleteRange):
        pieces.delete_range(txn, tables[op.table], tables[Table.PIECES], op.start, op.stop)


def _whole(txn: lmdb.Transaction[bytes], tables: Tables, stored: bytes) -> bytes:
    return pieces.whole(txn, tables.get(Table.PIECES), stored)


def _get(txn: lmdb.Transaction[bytes], tables: Tables, table: Table, key: bytes) -> bytes | None:
    stored = txn.get(key, db=tables[table])
    return None if stored is None else _whole(txn, tables, stored)


def _walk(
    cursor: lmdb.Cursor[bytes], start: bytes, stop: bytes, reverse: bool, limit: int | None
) -> Iterator[bytes]:
    found = _seek_before(cursor, stop) if reverse else cursor.set_range(start)
    left = limit
    while found and (left is None or left > 0):
        key = cursor.key()
        if not start <= key < stop:
            return
        yield key
        left = None if left is None else left - 1
        found = cursor.prev() if reverse else cursor.next()


def _last(cursor: lmdb.Cursor[bytes], start: bytes, stop: bytes) -> tuple[bytes, bytes] | None:
    if _seek_before(cursor, stop) and (key := cursor.key()) >= start:
        return key, cursor.value()
    return None


def _seek_before(cursor: lmdb.Cursor[bytes], stop: bytes) -> bool:
    """Moves to the last key below `stop`."""
    return cursor.prev() if cursor.set_range(stop) else cursor.last()


def _pages_in_use(txn: lmdb.Transaction[bytes], tables: Tables) -> int:
    pages = 0
    for table in (None, *tables.values()):
        stat = txn.stat() if table is None else txn.stat(table)
        pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    return pages


def _used_bytes(env: lmdb.Environment) -> int:
    return (env.info()["last_pgno"] + 1) * int(env.stat()["psize"])
