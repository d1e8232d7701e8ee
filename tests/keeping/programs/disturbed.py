"""Does one thing to a store again and again, each time disturbed by strace at another system call: killed on entering
it, or the call fails. Says what was found after each.

    python -m tests.keeping.programs.disturbed backup|restore|upgrade STORE SCRATCH kill|error STRIDE [CALL]

Of every call that changes something (or of CALL alone) the 1st, the (1 + STRIDE)th, ... are disturbed, until there are
no more. Prints JSON: of each call, how often the old and how often the new was found afterwards. What is neither, and
what does not end, is a traceback.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steelyard_server.history.creation import DATA, RESTORING
from steelyard_server.history.errors import StoreError
from steelyard_server.history.ops import Table
from steelyard_server.history.store import FORMAT_VERSION, Snapshot, Store
from steelyard_server.keeping.checking import check_store
from steelyard_server.keeping.errors import KeepingError
from steelyard_server.keeping.places import place_at
from steelyard_server.keeping.restoring import restore, whole_manifest
from steelyard_server.keeping.worker import TASKS
from tests.robustness.power import strace

How = Literal["kill", "error"]

# Those by which anything on a disk changes, and what each may fail by.
CALLS = {
    "mkdir": "ENOSPC",
    "openat": "EIO",
    "write": "ENOSPC",
    "pwrite64": "EIO",
    "writev": "EIO",
    "fsync": "EIO",
    "fdatasync": "EIO",
    "ftruncate": "EIO",
    "rename": "ENOSPC",
    "unlink": "EIO",
    "unlinkat": "EIO",
    "rmdir": "EIO",
    "flock": "EIO",
}
UNTOLD = 3
"""The exit status of what failed otherwise than it says."""


@dataclass(frozen=True, slots=True)
class Play:
    """`found` says which of old and new is there, and goes on from it; what is neither is an AssertionError. Its
    argument: whether what was done ended with an error, not by a kill."""

    act: Callable[[], object]
    found: Callable[[bool], str]


def restored(store: Path, work: Path) -> Play:
    target, expected = work / "restored", rows(store)
    backups = work / "backups"
    TASKS["backup"](lambda _: None, str(store), str(backups), False, 1e12, 1 << 18, 0)

    def found(failed: bool) -> str:
        whole = (target / DATA).exists()
        if failed:
            assert not target.exists(), sorted(target.iterdir())
        if not whole:
            if (target / RESTORING).exists():
                assert refused(target), "a server began beside what is left of a restore"
            restore(str(backups), target)
        assert rows(target) == expected
        return "new" if whole else "old"

    return Play(lambda: restore(str(backups), target), found)


def backed_up(store: Path, work: Path) -> Play:
    """Beside one that there is, which it then removes."""
    place, before = work / "backups", (store / DATA).read_bytes()
    TASKS["backup"](lambda _: None, str(store), str(place), False, 1e12, 1 << 18, 0)
    [first] = place_at(str(place)).names()

    def found(failed: bool) -> str:
        at = place_at(str(place))
        names = at.names()
        for name in names:
            for part in whole_manifest(at, name).parts:
                data = (place / name / part.name).read_bytes()
                assert hashlib.sha256(data).hexdigest() == part.sha256, (name, part)
        assert (store / DATA).read_bytes() == before
        assert names in ([first], [first, names[-1]], [names[-1]])
        return "old" if names == [first] else "new"

    return Play(
        lambda: TASKS["backup"](lambda _: None, str(store), str(place), False, 1e12, 1 << 18, 1), found
    )


def upgraded(store: Path, work: Path) -> Play:
    expected = rows(store)

    def found(failed: bool) -> str:
        snapshot = Snapshot(store, shared=False)
        state = "new" if snapshot.format == FORMAT_VERSION else "old"
        snapshot.close()
        assert rows(store) == expected
        Store.open(store).close()
        snapshot = Snapshot(store, shared=False)
        assert snapshot.format == FORMAT_VERSION
        snapshot.close()
        assert rows(store) == expected
        assert not check_store(store, shared=False, deep=False)["damages"]
        return state

    return Play(lambda: Store.open(store).close(), found)


PLAYS = {"restore": restored, "backup": backed_up, "upgrade": upgraded}


def rows(directory: Path) -> str:
    """A digest of all that is stored, but for what the store says of itself: its format, its probes."""
    digest = hashlib.sha256()
    snapshot = Snapshot(directory, shared=False)
    for table in Table:
        for key, value in snapshot.walk(table):
            if table is not Table.META or key == b"next-id":
                digest.update(b"".join((table.encode(), key, b"=", value, b";")))
    snapshot.close()
    return digest.hexdigest()


def refused(directory: Path) -> bool:
    try:
        Store.open(directory).close()
    except StoreError:
        return True
    return False


def disturbed(
    act: Callable[[], object], log: Path, call: str, what: str, number: int, follow: bool
) -> tuple[int, bool]:
    """(exit status, whether the call was reached) of a fork that does it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # ends when strace is there
        status = 0
        try:
            act()
        except (KeepingError, StoreError, OSError):
            status = 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = UNTOLD
        os._exit(status)
    os.close(reader)
    # Not the process that verifies: it writes nothing, and when it dies the restore says so.
    tracer = strace.Attached(child, *strace.inject(log, call, what, str(number)), follow=follow)
    tracer.await_begin()
    os.close(writer)
    try:
        tracer.wait()
    except RuntimeError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise AssertionError(f"{what} of {call} number {number}: it did not end") from None
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, status == -signal.SIGKILL or strace.injected(log) > 0


def main() -> None:
    name, original, scratch, how, stride, *only = sys.argv[1:]
    told: dict[str, Counter[str]] = {}
    for call in only or CALLS:
        what = "signal=KILL" if how == "kill" else f"error={CALLS[call]}"
        told[call] = Counter()
        for number in itertools.count(1, int(stride)):
            work = Path(scratch) / f"{call}-{number}"
            play = PLAYS[name](Path(shutil.copytree(original, work / "store")), work)
            status, reached = disturbed(
                play.act, Path(scratch) / "strace", call, what, number, follow=name != "restore"
            )
            assert status in ((0, -signal.SIGKILL) if how == "kill" else (0, 1)), (call, number, status)
            if not reached:
                shutil.rmtree(work)
                break
            try:
                told[call][play.found(status == 1)] += 1
            except Exception as error:
                raise AssertionError(
                    f"{what} of {call} number {number}, left in {work}: {error!r}"
                ) from error
            shutil.rmtree(work)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
