"""Where backups lie: a folder of this machine, or a URL that fsspec knows.

    PLACE/backup-20261123T200102.345Z-0badcafe-1f2e/manifest.json, data.00000, ...

The name has the time and which store it is of: several servers may share a place, and each removes but its own.


In a folder a backup comes into being by a rename, under a name that no reader looks at until then. An object store has
no rename: there the manifest is put last, and what has none is no backup. Going, it is the other way round.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from steelyard_server.history.creation import sync_directory
from steelyard_server.history.errors import StoreError

from . import manifest
from .errors import KeepingError, NotWholeError, RefusedError

VERIFIED = "verified.json"
"""Beside a manifest: that a restore of this backup was verified, and when."""

_PREFIX = "backup-"
_UNNAMED = "00000000"
"""Of a backup whose store had no name yet."""
_PARTIAL = ".partial-"
_SYNC_EVERY = 8 << 20
"""Bytes after which a file on this machine is synced, so that no commit waits for the whole of it at once."""
_ABANDONED_SECONDS = 86400.0
"""What is no backup after this time was given up."""
_WITHOUT_FOLDERS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
"""Where to make a folder is to make a bucket, which is nobody's wish."""


class Writer(Protocol):
    def write(self, data: bytes | memoryview, /) -> object: ...


class Place(Protocol):
    """Backups, by name; a name sorts by when it was begun. OSError, or what fsspec raises, where it cannot be
    reached."""

    where: str
    """As an operator knows it, without credentials."""

    def names(self) -> list[str]:
        """Of what has a manifest, oldest first."""

    def writing(self, name: str, file: str) -> contextlib.AbstractContextManager[Writer]:
        """A file of a backup that is being made; whole and durable when the block ends."""

    def publish(self, name: str, data: bytes) -> None:
        """Makes it a backup: `data` is its manifest."""

    def read(self, name: str, file: str) -> bytes | None:
        """A small file, or None where it is not there."""

    def open(self, name: str, file: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """NotWholeError where it is not there."""

    def leave(self, name: str, file: str, data: bytes) -> None:
        """Puts a small file beside the manifest."""

    def remove(self, name: str) -> None:
        """A backup, or what is left of one."""

    def sweep(self) -> None:
        """Removes what was begun and given up more than a day ago."""


def new_name(store: str) -> str:
    """Of a backup of `store` (identity.py) that begins now."""
    now = datetime.now(UTC)
    return f"{_PREFIX}{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}Z-{store}-{secrets.token_hex(2)}"


def store_of(name: str) -> str:
    """Which store a backup is of."""
    return name.removeprefix(_PREFIX).partition("Z-")[2].partition("-")[0]


def place_at(where: str) -> Place:
    """KeepingError: it is a URL that fsspec does not know, or its package is not installed."""
    folder = local_folder(where)
    return Folder(folder) if folder is not None else Remote(where)


def local_folder(where: str) -> Path | None:
    """The folder that `where` means; None where it is a URL of somewhere else. RefusedError: a URL of a folder of
    another machine."""
    scheme, separator, rest = where.partition("://")
    if not separator or "/" in scheme:
        return Path(where).absolute()
    if scheme.lower() not in ("file", "local"):
        return None
    if not rest.startswith("/"):
        raise RefusedError(f"expected file:///FOLDER, with three slashes, got {where!r}")
    return Path(rest).absolute()


def within(where: str, root: str) -> bool:
    """Whether `where` is `root` or lies below it, links followed."""
    try:
        folder, base = local_folder(where), local_folder(root)
        if folder is not None and base is not None:
            return folder.resolve().is_relative_to(base.resolve())
    except (OSError, ValueError, RuntimeError, RefusedError):  # too long, a zero byte, links in a circle
        return False
    if folder is not None or base is not None:
        return False
    base_parts = root.rstrip("/").split("/")
    parts = where.rstrip("/").split("/")
    below = unquote("/".join(parts[len(base_parts) :]))
    # "::" chains another file system to it; "?" and "#" end a path.
    odd = {".", ".."} & set(below.split("/")) or any(sign in below for sign in ("::", "?", "#", "\\", "\0"))
    return not odd and parts[: len(base_parts)] == base_parts


def refuse_inside(where: str, data: Path) -> None:
    """RefusedError where backups at `where` would lie in the folder of the data: what takes that takes them too."""
    if within(where, str(data)):
        raise RefusedError(
            f"expected a place for backups that is outside of the data folder {data}, so that one can be lost without "
            f"the other; got {shown(where)!r}"
        )


def prepare(where: str) -> None:
    """RefusedError where it is a folder of this machine that backups cannot be written to."""
    folder = local_folder(where)
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise RefusedError(
            f"no backup can be written to {folder}: {error.strerror}. Expected a folder that this process can make, or "
            "write to: mend that, or name another place"
        ) from error


def backup_at(source: str) -> tuple[Place, str]:
    """The backup that `source` is, or the newest that lies in it. NotWholeError where there is none. RefusedError where
    it has backups of several stores."""
    place = place_at(source)
    folder = local_folder(source)
    if folder is not None and not folder.exists():
        raise NotWholeError(f"{folder} does not exist: expected a backup, or a folder of backups")
    if place.read("", manifest.FILE) is not None:
        parent, _, name = source.rstrip("/").rpartition("/")
        return (place_at(parent), name) if folder is None else (Folder(folder.parent), folder.name)
    names = place.names()
    if not names:
        raise NotWholeError(
            f"{place.where} holds no whole backup: none of what is there has a {manifest.FILE}"
        )
    newest = {store_of(name): name for name in names}
    # A store got its name when a newer server first opened it: what it was before is no other store.
    if names[-1] != newest.get(_UNNAMED):
        newest.pop(_UNNAMED, None)
    if len(newest) > 1:
        raise RefusedError(
            f"{place.where} holds backups of {len(newest)} stores; say which: the newest of each are "
            + ", ".join(f"{place.where}/{name}" for name in sorted(newest.values())[-5:])
        )
    return place, names[-1]


class Folder:
    """On this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.where = str(folder)

    def names(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        return sorted(
            path.name for path in self._folder.iterdir()
            if path.name.startswith(_PREFIX) and (path / manifest.FILE).is_file()
        )  # fmt: skip

    @contextlib.contextmanager
    def writing(self, name: str, file: str) -> Iterator[Writer]:
        draft = self._draft(name)
        draft.mkdir(parents=True, exist_ok=True)
        with (draft / file).open("xb", buffering=0) as out:
            yield _Synced(out)
            os.fsync(out.fileno())

    def publish(self, name: str, data: bytes) -> None:
        draft = self._draft(name)
        with self.writing(name, manifest.FILE) as out:
            out.write(data)
        sync_directory(draft)
        draft.rename(self._folder / name)
        sync_directory(self._folder)
        sync_directory(self._folder.parent)

    def read(self, name: str, file: str) -> bytes | None:
        try:
            return (self._folder / name / file).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextlib.contextmanager
    def open(self, name: str, file: str) -> Iterator[BinaryIO]:
        path = self._folder / name / file
        if not path.is_file():
            raise NotWholeError(f"{self.where}/{name} has no {file}")
        with path.open("rb") as stream:
            yield stream

    def leave(self, name: str, file: str, data: bytes) -> None:
        path = self._folder / name / file
        draft = path.with_name(f".{file}.{os.getpid()}")
        draft.write_bytes(data)
        draft.replace(path)

    def remove(self, name: str) -> None:
        draft = self._draft(name)
        with contextlib.suppress(FileNotFoundError):
            (self._folder / name).rename(draft)
            sync_directory(self._folder)
        shutil.rmtree(draft, ignore_errors=True)

    def sweep(self) -> None:
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            name = path.name.removeprefix(_PARTIAL)
            if name != path.name and _is_abandoned(name):
                shutil.rmtree(path, ignore_errors=True)

    def _draft(self, name: str) -> Path:
        return self._folder / f"{_PARTIAL}{name}"


class _Synced:
    """Writes all, and has it on the disk bit by bit."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._unsynced = 0

    def write(self, data: bytes | memoryview) -> int:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._unsynced += len(data)
        if self._unsynced >= _SYNC_EVERY:
            os.fdatasync(self._file.fileno())
            self._unsynced = 0
        return len(data)


class Remote:
    """What fsspec knows by a URL."""

    def __init__(self, url: str) -> None:
        self.where = shown(url)
        try:
            import fsspec
        except ModuleNotFoundError:
            raise KeepingError(f"{self.where}: URLs need the package fsspec: pip install fsspec") from None
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except Exception as error:
            raise KeepingError(f"{self.where} cannot be used: {error or type(error).__name__}") from None
        protocol = self._files.protocol
        kinds = {protocol} if isinstance(protocol, str) else set(protocol)
        self._has_folders = not kinds & _WITHOUT_FOLDERS

    def names(self) -> list[str]:
        with self._told():
            return [name for name in self._begun() if self._files.exists(self._path(name, manifest.FILE))]

    @contextlib.contextmanager
    def writing(self, name: str, file: str) -> Iterator[Writer]:
        with self._told():
            if self._has_folders:
                self._files.makedirs(self._path(name), exist_ok=True)
            with self._files.open(self._path(name, file), "wb") as out:
                yield out

    def publish(self, name: str, data: bytes) -> None:
        with self._told():
            self._files.pipe_file(self._path(name, manifest.FILE), data)

    def read(self, name: str, file: str) -> bytes | None:
        try:
            with self._told():
                return bytes(self._files.cat_file(self._path(name, file)))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    @contextlib.contextmanager
    def open(self, name: str, file: str) -> Iterator[BinaryIO]:
        try:
            with self._told():
                stream = self._files.open(self._path(name, file), "rb")
        except FileNotFoundError:
            raise NotWholeError(f"{self.where}/{name} has no {file}") from None
        with self._told(), stream:
            yield stream

    def leave(self, name: str, file: str, data: bytes) -> None:
        with self._told():
            self._files.pipe_file(self._path(name, file), data)

    def remove(self, name: str) -> None:
        with self._told():
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._path(name, manifest.FILE))
            self._files.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):
                self._files.rm(self._path(name), recursive=True)

    def sweep(self) -> None:
        whole = set(self.names())
        for name in self._begun():
            if name not in whole and _is_abandoned(name):
                self.remove(name)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Of the many errors that the packages behind fsspec have, what an operator can read."""
        try:
            yield
        except (OSError, KeepingError, StoreError):
            raise
        except Exception as error:
            raise KeepingError(f"{self.where} cannot be used: {error or type(error).__name__}") from error

    def _begun(self) -> list[str]:
        # What was listed before, in this process, is no answer to what is there now.
        self._files.invalidate_cache()
        try:
            found = self._files.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        names = {str(path).rstrip("/").rpartition("/")[2] for path in found}
        return sorted(name for name in names if name.startswith(_PREFIX))

    def _path(self, *parts: str) -> str:
        return "/".join([self._root.rstrip("/"), *(part for part in parts if part)])


def shown(url: str) -> str:
    """The URL as it may be logged: no user, no password, no query."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def _is_abandoned(name: str) -> bool:
    try:
        begun = datetime.strptime(name[len(_PREFIX) :][:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return False
    return time.time() - begun.timestamp() > _ABANDONED_SECONDS
