"""Does one thing to a folder again and again, and is killed (SIGKILL) before its n-th operation on files; says after
each kill what is there.

    python kill_at.py restore|backup|compact STORE SCRATCH NUMBER...        NUMBER: which operation; below 0 from the
    end

An operation is one that Python's audit events tell of: open, mkdir, rename, remove, listing, a child process. Prints
JSON: how many operations there are undisturbed, and of each kill what was found.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from steelyard_server.history.errors import StoreError
from steelyard_server.history.store import Snapshot, Store, Table
from steelyard_server.keeping import offline
from steelyard_server.keeping.compacting import compact
from steelyard_server.keeping.places import place_at
from steelyard_server.keeping.restoring import restore, whole_manifest

WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "subprocess.Popen",
           "fcntl.flock", "os.truncate", "shutil.rmtree")  # fmt: skip


def forked(action: Callable[[], object], kill_at: int, count: int = -1) -> tuple[int, int]:
    """(status, operations) of `action` in a child that is killed at operation `kill_at`; -1: never."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        done = 0

        def watch(event: str, arguments: object) -> None:
            nonlocal done
            if event in WATCHED:
                if done == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                done += 1

        sys.addaudithook(watch)
        action()
        os.write(writer, str(done).encode())
        os._exit(0)
    os.close(writer)
    operations = os.read(reader, 20)
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(operations or -1)


def rows(directory: Path) -> str:
    """A digest of all that is stored."""
    digest = hashlib.sha256()
    snapshot = Snapshot(directory, shared=False)
    for table in Table:
        for key, value in snapshot.walk(table):
            digest.update(b"".join((table.encode(), key, b"=", value, b";")))
    snapshot.close()
    return digest.hexdigest()


def whole_backups(place: Path) -> int:
    """How many backups are seen there; each must be whole."""
    at = place_at(str(place))
    for name in at.names():
        for part in whole_manifest(at, name).parts:
            data = (place / name / part.name).read_bytes()
            assert hashlib.sha256(data).hexdigest() == part.sha256, (name, part)
    return len(at.names())


def restored(store: Path, scratch: Path) -> tuple[Callable[[], object], Callable[[], str]]:
    target, expected = scratch / "restored", rows(store)

    def found() -> str:
        if (target / "data.mdb").exists():
            assert rows(target) == expected
            return "new"
        if target.exists() and any(path.name != "LOCK" for path in target.iterdir()):
            try:
                Store.open(target).close()
                return "a server began with nothing in it"
            except StoreError:
                pass
        restore(str(scratch / "backups"), target)
        assert rows(target) == expected
        return "old"

    return lambda: restore(str(scratch / "backups"), target), found


def backed_up(store: Path, scratch: Path) -> tuple[Callable[[], object], Callable[[], str]]:
    place, before = scratch / "backups", (store / "data.mdb").read_bytes()

    def found() -> str:
        count = whole_backups(place)
        assert (store / "data.mdb").read_bytes() == before
        assert count in (1, 2), count
        return ("old", "new")[count - 1]

    return lambda: offline.backup(store, str(place), 60), found


def compacted(store: Path, scratch: Path) -> tuple[Callable[[], object], Callable[[], str]]:
    expected, size = rows(store), (store / "data.mdb").stat().st_size

    def found() -> str:
        assert rows(store) == expected
        state = "new" if (store / "data.mdb").stat().st_size < size else "old"
        Store.open(store).close()
        return state

    return lambda: compact(store), found


ACTIONS = {"restore": restored, "backup": backed_up, "compact": compacted}


def main() -> None:
    name, original, scratch, *numbers = sys.argv[1:]
    operations, kills = -1, []
    base = Path(scratch) / "base"
    if name != "compact":
        offline.backup(Path(original), str(base), 60)
    base.mkdir(parents=True, exist_ok=True)
    for kill_at in (-1, *map(int, numbers)):
        at = kill_at
        if kill_at < -1:
            at = operations + kill_at + 1
        work = Path(scratch) / f"{name}{kill_at}"
        store = Path(shutil.copytree(original, work / "store"))
        shutil.copytree(base, work / "backups")
        action, found = ACTIONS[name](store, work)
        status, done = forked(action, at)
        operations = done if operations < 0 else operations
        kills.append([at, status, found()])
        shutil.rmtree(work)
        if status == 0 and kill_at >= 0:
            break  # it has not so many
    print(json.dumps({"operations": operations, "undisturbed": kills[0], "kills": kills[1:]}))


if __name__ == "__main__":
    main()
