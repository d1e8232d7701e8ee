"""What a server does to keep its store: backups when asked and on a schedule, and checks, beside the runs.

Each is done by a child process, which reads the store as of one moment. What was freed since is not used again until it
ends, so the file may grow by what is written meanwhile; a deadline bounds that, and what there is room for.
"""

from __future__ import annotations

import json
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steelyard_server.history.errors import StoreError
from steelyard_server.history.room import reserve
from steelyard_server.history.store import Store
from steelyard_server.log import logger

from . import manifest
from .errors import BusyError, KeepingError, RefusedError
from .identity import give_identity, identity
from .manifest import Manifest
from .places import VERIFIED, Place, place_at, refuse_inside, shown, store_of, within
from .work import Task, Watch
from .writing import PART_BYTES, RATE, backup_by

_REFRESH_SECONDS = 300.0
"""How often is looked at the place of the backups: a restore is verified by somebody else."""
_RETRY_SECONDS = 60.0
"""From a scheduled backup that failed to the next try, and twice that after two; never longer than the interval."""
_JITTER = 0.05
"""Of the interval: servers that were started together do not all write at once."""
_CHECK_SECONDS = 4 * 3600.0
_STOP_SECONDS = 10.0

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class KeepingStatus:
    """For metrics. Times in seconds since 1970, None where there was none that this server knows of."""

    backup_to: str | None
    """Without credentials."""
    backup_unix_seconds: float | None
    """When the newest whole backup in backup_to was made."""
    backup_failures: int
    """Backups that failed since the server started, asked for or scheduled."""
    verified_unix_seconds: float | None
    """When a restore of a backup from there was verified last."""
    error: str
    """What the last try failed by; empty after one that succeeded."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole backup. A manifest that cannot be read is in `fault`, and then `made` is None."""

    name: str
    made: Manifest | None
    verified_unix_seconds: float | None
    fault: str = ""


class Keeper:
    """Thread-safe. `start` begins the schedule; without it, it does what it is asked."""

    def __init__(
        self,
        store: Store,
        directory: Path,
        *,
        to: str | None = None,
        interval: float = 0.0,
        keep: int = 7,
        timeout: float = 3600.0,
        rate: float = RATE,
        tell: Callable[[KeepingStatus], object] = lambda _: None,
    ) -> None:
        """`to`: where backups go; no other place is written to, but for what lies below it. `interval`: seconds between
        scheduled ones, 0 for none. `keep`: how many are kept there. `timeout`: how many seconds one may take. `tell`
        is told of each new status, on any thread."""
        self._store = store
        self._directory = directory
        self._to = to
        self._interval = interval
        self._keep = keep
        self._timeout = timeout
        self._rate = rate
        self._tell = tell
        self._one_backup = threading.Lock()
        self._one_check = threading.Lock()
        self._lock = threading.Lock()
        self._tasks: set[Task] = set()
        self._status = KeepingStatus(None if to is None else shown(to), None, 0, None, "")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backups", daemon=True)

    def start(self) -> None:
        """Begins the schedule, and to look at the backups that there are."""
        if self._to is not None:
            self._thread.start()

    def stop(self) -> None:
        """Breaks off what is under way; a backup that is not whole is none."""
        self._stopping.set()
        with self._lock:
            tasks = list(self._tasks)
        for task in tasks:
            task.stop()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def status(self) -> KeepingStatus:
        """Never waits."""
        return self._status

    # ---- what is asked for ----

    def backup(self, to: str = "") -> tuple[Manifest, list[str]]:
        """Makes a backup in `to`, by default where backups go; and what was removed for it, of the latter alone.

        It holds all that was acknowledged before this was called. RefusedError: `to` is neither where backups go nor
        below. BusyError: another one is under way. KeepingError, StoreError: it failed, and there is no new backup.
        """
        where = self._destination(to)
        if not self._one_backup.acquire(blocking=False):
            raise BusyError("a backup is under way; ask again when it has ended")
        try:
            made, removed = self._backup(where)
        except Exception as error:
            self._change(backup_failures=self._status.backup_failures + 1, error=str(error))
            _log.error("backup_failed", to=shown(where), error=str(error))
            raise
        finally:
            self._one_backup.release()
        if where == self._to:
            self._change(backup_unix_seconds=made.created_unix_seconds, error="")
        _log.info("backup_made", to=shown(where), name=made.name, bytes=made.bytes, removed=removed)
        return made, removed

    def place(self, to: str = "") -> str:
        """Where backups asked for with `to` lie, as an operator knows it. RefusedError as of `backup`."""
        return shown(self._destination(to))

    def backups(self, to: str = "") -> list[Kept]:
        """The whole backups, oldest first. Errors as of `backup`."""
        place = place_at(self._destination(to))
        try:
            return [read_kept(place, name) for name in place.names()]
        except OSError as error:
            raise KeepingError(f"the backups in {place.where} could not be listed: {error}") from error

    def check(self, *, deep: bool) -> Iterator[dict[str, Any]]:
        """What checking.py says as it goes on, then its report as {"report": ...}, as of one moment; {} after each
        moment in which it says nothing. To close it ends the check. The pages of the file are not looked at: that needs
        nobody to write to it. BusyError: another check is under way. KeepingError."""
        if not self._one_check.acquire(blocking=False):
            raise BusyError("a check is under way; ask again when it has ended")
        try:
            self._store.commit([])
            task = Task(
                "check", "the check", directory=str(self._directory), shared=True, deep=deep, expected=None
            )
            with self._lock:
                self._tasks.add(task)
            try:
                for kind, value in task.lines(_CHECK_SECONDS, self._growth()):
                    if kind == "done":
                        yield {"report": value}
                    else:
                        yield value or {}
            finally:
                self._ended(task)
        finally:
            self._one_check.release()

    # ---- inside ----

    def _destination(self, to: str) -> str:
        if self._to is None:
            raise RefusedError("the server has no backup_to: start it with --backup-to FOLDER or URL")
        # No path holds a NUL, and no system call takes one.
        if to and ("\0" in to or not within(to, self._to)):
            raise RefusedError(
                f"expected {shown(self._to)!r}, which is the server's backup_to, or a place below it; got {shown(to)!r}"
            )
        refuse_inside(to or self._to, self._directory)
        return to or self._to

    def _backup(self, where: str) -> tuple[Manifest, list[str]]:
        if self._stopping.is_set():
            raise RefusedError("the server drains")
        give_identity(self._store)
        # Whatever was acknowledged is in the file then, and not in the tail alone.
        self._store.commit([])
        task = Task(
            "backup",
            "the backup",
            directory=str(self._directory),
            to=where,
            shared=True,
            rate=self._rate,
            part_bytes=PART_BYTES,
            keep=self._keep if where == self._to else 0,
        )
        with self._lock:
            self._tasks.add(task)
        try:
            return backup_by(task, self._timeout, self._growth())
        finally:
            self._ended(task)

    def _ended(self, task: Task) -> None:
        with self._lock:
            self._tasks.discard(task)
        # Where it was killed, its pages would be kept for it.
        self._store.forget_stale_readers()

    def _growth(self) -> Watch:
        """Breaks off what reads the store where that has its file grow by more than half of what there is room for when
        it begins: no run may find the map or the disk full because of it."""
        before = self._store.stats()
        left = before.max_map_size - reserve(before.max_map_size) - before.used_bytes
        most = max(0, min(left, shutil.disk_usage(self._directory).free)) // 2

        def reason() -> str:
            try:
                grown = self._store.stats().used_bytes - before.used_bytes
            except StoreError:
                return ""
            if grown <= most:
                return ""
            return (
                f"the store's file has grown by {grown} bytes since it began, while pages are kept for it, and "
                f"{most} is half of what there was room for; give the disk or max_map_size_bytes more, or "
                "backup_rate_bytes, so that it takes less time"
            )

        return reason

    def _refresh(self) -> None:
        assert self._to is not None
        place, own = place_at(self._to), identity(self._store)
        names = [name for name in place.names() if store_of(name) == own]
        made = (read_kept(place, name).made for name in reversed(names))
        newest = next((one for one in made if one is not None), None)
        verified = _verified(place, "", own)
        created = None if newest is None else newest.created_unix_seconds
        self._change(backup_unix_seconds=created, verified_unix_seconds=verified)

    def _change(self, **fields: Any) -> None:
        with self._lock:
            self._status = replace(self._status, **fields)
        self._tell(self._status)

    def _run(self) -> None:
        self._try_refresh()
        due = time.monotonic() + self._first_wait()
        failures = 0
        while not self._stopping.wait(self._pause(due)):
            if not self._interval or time.monotonic() < due:
                self._try_refresh()
                continue
            try:
                self.backup()
                failures = 0
                wait = self._interval * (1 + _chance(-_JITTER, _JITTER))
            except BusyError:
                wait = _RETRY_SECONDS
            except Exception:
                failures += 1
                wait = _RETRY_SECONDS * 2 ** min(failures - 1, 10)
            due = time.monotonic() + min(wait, self._interval * (1 + _JITTER))

    def _pause(self, due: float) -> float:
        return max(0.0, min(due - time.monotonic(), _REFRESH_SECONDS)) if self._interval else _REFRESH_SECONDS

    def _first_wait(self) -> float:
        last = self._status.backup_unix_seconds
        age = self._interval if last is None else min(max(0.0, time.time() - last), self._interval)
        return (self._interval - age) * (1 + _chance(0.0, _JITTER))

    def _try_refresh(self) -> None:
        try:
            self._refresh()
        except Exception as error:
            _log.warning("backups_not_listed", to=self._status.backup_to, error=str(error))


def read_kept(place: Place, name: str) -> Kept:
    """A backup as its manifest describes it."""
    data = place.read(name, manifest.FILE)
    try:
        made = manifest.from_bytes(data or b"", f"{place.where}/{name}")
    except KeepingError as error:
        return Kept(name, None, None, str(error))
    return Kept(name, made, _verified(place, name))


def _verified(place: Place, name: str, store: str = "") -> float | None:
    """When; with a `store`, None where it was a backup of another one."""
    data = place.read(name, VERIFIED)
    try:
        said = json.loads(data or b"{}")
        of_it = not store or store_of(said["name"]) == store
        return float(said["verified_unix_seconds"]) if of_it else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _chance(low: float, high: float) -> float:
    return low + (high - low) * secrets.randbelow(1 << 20) / (1 << 20)
