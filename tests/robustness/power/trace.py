"""What strace recorded of a life (strace.record), as events of a file system.

    events = read(trace, directory)      paths are relative to the data directory; lock files are left out

Only whole calls that succeeded count, at the moment they returned, with the bytes that they took.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "openat,write,pwrite64,writev,pwritev,lseek,ftruncate,fdatasync,fsync,msync,fallocate,rename,renameat2,unlink,"
    "unlinkat,mkdir,rmdir"
)
_IGNORED = {"LOCK", "lock.mdb", "draft/lock.mdb"}
"""Locks and the table of readers: made anew by whoever opens, and never synced."""


@dataclass(frozen=True, slots=True)
class Created:
    path: str


@dataclass(frozen=True, slots=True)
class Renamed:
    path: str
    to: str


@dataclass(frozen=True, slots=True)
class Removed:
    path: str


@dataclass(frozen=True, slots=True)
class Wrote:
    """`through`: the call returned when the bytes were on the medium (O_DSYNC)."""

    path: str
    offset: int
    data: bytes
    through: bool


@dataclass(frozen=True, slots=True)
class Truncated:
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Synced:
    """A file, or a folder: the names in it."""

    path: str


@dataclass(frozen=True, slots=True)
class Told:
    """A line of the notes: what the caller knows from `time` on (seconds)."""

    words: tuple[str, ...]
    time: float


Event = Created | Renamed | Removed | Wrote | Truncated | Synced | Told

_LINE = re.compile(r"(\d+) +(\d+\.\d+) (\w+)\((.*)\) += (-?\d+)(.*)", re.DOTALL)
_UNFINISHED = re.compile(r"(\d+) +(\d+\.\d+) (.*) <unfinished \.\.\.>$", re.DOTALL)
_RESUMED = re.compile(r"(\d+) +(\d+\.\d+) <\.\.\. (\w+) resumed>(.*)$", re.DOTALL)
_FILE = re.compile(r"(\d+)<([^>]*)>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def read(trace: Path, directory: Path) -> list[Event]:
    """ValueError where a call writes to the directory in a way that is not understood here."""
    reader = _Reader(directory)
    return [event for line in _whole_calls(trace) for event in reader.events(*line)]


def _whole_calls(trace: Path) -> Iterator[tuple[float, str, str, int]]:
    """(time, call, arguments, result), the halves of a call that was interrupted by another thread's put together."""
    begun: dict[str, str] = {}
    for raw in trace.read_text("ascii").splitlines():
        line = raw
        if match := _UNFINISHED.match(line):
            begun[match[1]] = match[3]
            continue
        if match := _RESUMED.match(line):
            line = f"{match[1]} {match[2]} {begun.pop(match[1])}{match[4]}"
        if (match := _LINE.match(line)) and int(match[5]) >= 0:
            yield float(match[2]), match[3], match[4], int(match[5])


class _Reader:
    """One process's calls, in order. Keeps where each descriptor stands and how it was opened."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self._notes = f"{directory}.notes"
        self._through: set[int] = set()
        self._place: dict[int, int] = {}
        self._rest = b""

    def events(self, time: float, call: str, arguments: str, result: int) -> Iterator[Event]:
        if call == "openat":
            yield from self._opened(arguments, result)
        elif call in ("rename", "renameat2"):
            yield from self._renamed(arguments)
        elif call in ("unlink", "unlinkat"):
            path = self._relative(_texts(arguments)[-1])
            if path is not None:
                yield Removed(path)
        elif match := _FILE.match(arguments):
            yield from self._on_file(time, call, arguments, result, int(match[1]), _plain(match[2]))

    def _opened(self, arguments: str, result: int) -> Iterator[Event]:
        path = self._relative(_texts(arguments)[-1])
        self._through.discard(result)
        self._place[result] = 0
        if path is not None:
            if "O_DSYNC" in arguments or "O_SYNC" in arguments:
                self._through.add(result)
            if "O_CREAT" in arguments:
                yield Created(path)
            if "O_TRUNC" in arguments:
                yield Truncated(path, 0)

    def _renamed(self, arguments: str) -> Iterator[Event]:
        before, after = (self._relative(text) for text in _texts(arguments)[-2:])
        if (before is None) != (after is None):
            raise ValueError(f"a rename across the data directory is not understood: {arguments}")
        if before is not None and after is not None:
            yield Renamed(before, after)

    def _on_file(
        self, time: float, call: str, arguments: str, result: int, number: int, name: str
    ) -> Iterator[Event]:
        if call == "lseek":
            self._place[number] = result
            return
        if name == self._notes and call == "write":
            yield from self._told(time, b"".join(_bytes(arguments))[:result])
            return
        path = self._relative(name)
        if path is None:
            return
        if call in ("fdatasync", "fsync"):
            yield Synced(path)
        elif call == "ftruncate":
            yield Truncated(path, int(arguments.rpartition(",")[2]))
        elif call in ("write", "writev", "pwrite64", "pwritev"):
            at = self._place.get(number, 0)
            if call.startswith("p"):
                at = int(arguments.rpartition(",")[2])
            else:
                self._place[number] = at + result
            yield Wrote(path, at, b"".join(_bytes(arguments))[:result], number in self._through)
        else:
            raise ValueError(f"{call} of {path} is not understood")

    def _told(self, time: float, data: bytes) -> Iterator[Told]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield Told(tuple(line.decode("ascii").split(" ")), time)

    def _relative(self, path: str) -> str | None:
        """Within the data directory, "" for itself; None elsewhere."""
        if path != self._directory and not path.startswith(f"{self._directory}/"):
            return None
        inside = path[len(self._directory) + 1 :]
        return None if inside in _IGNORED else inside


def _bytes(arguments: str) -> list[bytes]:
    return [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(arguments)]


def _texts(arguments: str) -> list[str]:
    return [text.decode() for text in _bytes(arguments)]


def _plain(escaped: str) -> str:
    return bytes.fromhex(escaped.replace("\\x", "")).decode() if escaped.startswith("\\x") else escaped
