"""Puts a backup in place of nothing: fetched beside its place, verified by a child process, and made the store by one
rename.

What a kill leaves at any point is a folder without a store, in which a server refuses to begin a new one
(creation.py) and a restore may be begun again; or the whole store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from steelyard_server.history.creation import DATA, RESTORING, sync_directory
from steelyard_server.history.lockfile import LockFile
from steelyard_server.history.store import FORMAT_VERSION
from steelyard_server.log import logger

from . import manifest
from .checking import held_by
from .errors import BrokenOffError, KeepingError, NotWholeError, RefusedError
from .manifest import Manifest
from .places import VERIFIED, Place, backup_at
from .work import Task

_log = logger(__name__)

SECONDS = 6 * 3600.0
"""How long the verification may take; in a drill, together with fetching."""

_LEFTOVERS = {RESTORING, "LOCK", "lock.mdb", "lost+found", "draft"}
"""What a folder may hold that counts as empty: what a killed restore leaves, and what a new file system begins with."""
_PIECE = 1 << 20
_NAMED = 3


def restore(source: str, directory: Path, *, say: Callable[[str], None] = lambda _: None) -> Manifest:
    """Makes `directory` what the backup at `source` holds; of a place with several, the newest.

    NotWholeError, DiedError: the backup is not used. RefusedError: the directory holds something, or the backup is of a
    newer program. StoreBusy: somebody holds the directory. KeepingError: its disk is full, cannot be written to, or
    fails. In all these cases it is as it was before, but for an empty lock file where it was there.
    """
    place, name = backup_at(source)
    made = whole_manifest(place, name)
    try:
        _check_empty(directory)
        with _folder(directory) as is_new:
            _restore_to(directory, is_new, place, made, say)
    except OSError as error:
        raise KeepingError(f"nothing was restored to {directory}: {error}") from error
    _record(place, name)
    return made


def _restore_to(
    directory: Path, is_new: bool, place: Place, made: Manifest, say: Callable[[str], None]
) -> None:
    """To a folder that is there. Nothing is renamed from or to elsewhere: it may be a mount point."""
    try:
        lock = LockFile(directory)
    except OSError:
        if is_new:
            (directory / "LOCK").unlink(missing_ok=True)
        raise
    try:
        _check_empty(directory)
        draft = directory / RESTORING
        begun_before = draft.exists()
        try:
            _fetch(place, made, draft, say)
            _verify(draft, made, say, end=time.monotonic() + SECONDS)
            for path in (draft / DATA, directory / "LOCK"):
                _own_as(path, directory)
            _put_in_place(draft, directory)
        except BaseException:
            with contextlib.suppress(OSError):
                _empty(draft)
                # What a killed restore left keeps servers away, and goes on to.
                if not begun_before:
                    draft.rmdir()
            raise
        shutil.rmtree(draft, ignore_errors=True)
    except BaseException:
        if is_new:
            (directory / "LOCK").unlink(missing_ok=True)
        raise
    finally:
        lock.release()


def _put_in_place(draft: Path, directory: Path) -> None:
    """The moment of it. Taken back where it cannot be made durable."""
    try:
        (draft / DATA).replace(directory / DATA)
        sync_directory(directory)
    except BaseException:
        (directory / DATA).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _folder(directory: Path) -> Iterator[bool]:
    """The folder is there within the block, durably; whether it was made for it. Where the block fails, it goes with
    all that had to be made on the way to it, unless something is in it."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in reversed(missing):
            _own_as(path, path.parent)
        for path in missing or [directory]:
            sync_directory(path.parent)
        yield bool(missing)
    except BaseException:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


def verify(
    source: str,
    scratch: Path | None = None,
    *,
    deep: bool = False,
    seconds: float = SECONDS,
    say: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """The restore drill: fetches and verifies a backup in a folder of its own, below `scratch`, that is removed.
    Records in the place of the backup that this was done. `deep`: its runs are replayed from each checkpoint to the
    next. Errors as of `restore`; BrokenOffError where all of it takes longer than `seconds`."""
    end = time.monotonic() + seconds
    place, name = backup_at(source)
    made = whole_manifest(place, name)
    with tempfile.TemporaryDirectory(prefix="steelyard-verify-", dir=scratch) as folder:
        draft = Path(folder) / RESTORING
        _fetch(place, made, draft, say, end)
        _verify(draft, made, say, deep=deep, end=end)
    _record(place, name)
    return made


def whole_manifest(place: Place, name: str) -> Manifest:
    """NotWholeError where there is none. RefusedError: a newer program wrote the backup."""
    where = f"{place.where}/{name}"
    data = place.read(name, manifest.FILE)
    if data is None:
        raise NotWholeError(f"{where} has no {manifest.FILE}: it is no whole backup")
    made = manifest.from_bytes(data, where)
    if made.store_format > FORMAT_VERSION:
        raise RefusedError(
            f"{where} has store format {made.store_format}; this program knows {FORMAT_VERSION} and older. Restore it "
            f"with Steelyard {made.steelyard_version} or newer"
        )
    return made


def _own_as(path: Path, directory: Path) -> None:
    """What root makes in the folder of a server that runs as somebody else is that somebody's."""
    owner = directory.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.chown(path, owner.st_uid, owner.st_gid)


def _check_empty(directory: Path) -> None:
    if not directory.exists():
        if directory.is_symlink():
            raise RefusedError(
                f"{directory} is a link to {directory.readlink()}, and there is no folder there"
            )
        return
    if not directory.is_dir():
        raise RefusedError(f"{directory} is no folder")
    tail = directory / "tail"
    found = {path.name for path in directory.iterdir()} - _LEFTOVERS
    if found == {"tail"} and not tail.stat().st_size:
        return
    if found:
        holder = held_by(directory)
        what = "all that is in it elsewhere" if directory.is_mount() else "the folder aside"
        raise RefusedError(
            f"expected {directory} to be empty or not there, found {', '.join(sorted(found)[:5])}"
            f"{'' if holder is None else f' ({holder})'}: a restore overwrites nothing; move {what} first"
        )


def _fetch(
    place: Place, made: Manifest, draft: Path, say: Callable[[str], None], end: float = math.inf
) -> None:
    draft.mkdir(exist_ok=True)
    _empty(draft)
    free = shutil.disk_usage(draft).free
    if free < made.bytes:
        raise RefusedError(f"{draft.parent} has {free} bytes free; the backup takes {made.bytes}")
    with (draft / DATA).open("xb") as out:
        for part in made.parts:
            say(f"fetching {made.name}/{part.name}: {part.bytes} bytes")
            digest, size = hashlib.sha256(), 0
            with place.open(made.name, part.name) as stream:
                while piece := stream.read(_PIECE):
                    out.write(piece)
                    digest.update(piece)
                    size += len(piece)
                    if time.monotonic() > end:
                        raise BrokenOffError(
                            f"fetching {place.where}/{made.name} took longer than was allowed and was broken off"
                        )
            if (size, digest.hexdigest()) != (part.bytes, part.sha256):
                raise NotWholeError(
                    f"{place.where}/{made.name}/{part.name} is not what was written: expected {part.bytes} bytes of "
                    f"SHA-256 {part.sha256}, found {size} of {digest.hexdigest()}"
                )
        out.flush()
        os.fsync(out.fileno())
    sync_directory(draft)


def _empty(draft: Path) -> None:
    """Of what a killed restore fetched. The folder stays: without it a server would begin with nothing."""
    for path in draft.iterdir():
        path.unlink()


def _verify(
    draft: Path, made: Manifest, say: Callable[[str], None], *, deep: bool = False, end: float
) -> None:
    say("verifying every page, row, record and run")
    damages: list[str] = []

    def note(said: dict[str, dict[str, str]]) -> None:
        finding = said.get("finding")
        if finding is not None and finding["severity"] == "damage":
            damages.append(f"{finding['where']}: {finding['what']}")

    task = Task(
        "check",
        f"the verification of {made.name}",
        directory=str(draft),
        shared=False,
        deep=deep,
        expected=made.model_dump(mode="json"),
    )
    task.run(max(0.0, end - time.monotonic()), note)
    if damages:
        more = f"; and {len(damages) - _NAMED} more" if len(damages) > _NAMED else ""
        raise NotWholeError(f"{made.name} is damaged and was not used: {'; '.join(damages[:_NAMED])}{more}")


def _record(place: Place, name: str) -> None:
    """That this backup was read back whole: beside it, and for the whole place, which outlives it."""
    data = json.dumps({"name": name, "verified_unix_seconds": time.time()}).encode()
    for at in (name, ""):
        try:
            place.leave(at, VERIFIED, data)
        except Exception as error:
            _log.warning("verification_not_recorded", place=place.where, error=str(error))
            return
