"""A disk that loses its power: what is certain of it, what is not, and what it holds after a cut.

Certain is what was synced: a file's bytes and size by fdatasync or fsync of the file or by a write through, a name by
fsync of a folder. Of the rest any part may have got there: whole writes, pages, sectors of 512 bytes, in any order;
only names come in order, as every journal of a file system has them. Bytes that a file was given the length for, and
nothing more, are zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.robustness.power.trace import Created, Event, Removed, Renamed, Synced, Truncated, Wrote

Kept = Sequence[tuple[int, int]]
"""Ranges of a write's bytes that got there. A truncation did where this is not empty."""


@dataclass(slots=True, eq=False)
class _Change:
    event: Wrote | Truncated
    certain: bool


@dataclass(slots=True, eq=False)
class _File:
    """`base` is certain; `changes` came later, in order."""

    base: bytearray = field(default_factory=bytearray)
    changes: list[_Change] = field(default_factory=list)

    def settle(self) -> None:
        """Takes into the base what nothing uncertain comes before."""
        while self.changes and self.changes[0].certain:
            _apply(self.base, self.changes.pop(0).event, None)

    def content(self, kept: dict[int, Kept]) -> bytes:
        found = bytearray(self.base)
        for change in self.changes:
            _apply(found, change.event, None if change.certain else kept[id(change)])
        return bytes(found)


@dataclass(frozen=True, slots=True)
class _Naming:
    event: Created | Renamed | Removed
    file: _File

    def apply(self, names: dict[str, _File]) -> None:
        if isinstance(self.event, Created):
            names[self.event.path] = self.file
            return
        names.pop(self.event.path, None)
        if isinstance(self.event, Renamed):
            names[self.event.to] = self.file


class Disk:
    """Takes events in order. After each, an image can be made of what is certain and a choice of the rest."""

    def __init__(self) -> None:
        self._certain: dict[str, _File] = {}
        self._names: dict[str, _File] = {}
        self._namings: list[_Naming] = []

    def take(self, event: Event, *, through: bool = True) -> None:
        """`through`: whether a write through is over, and certain."""
        if isinstance(event, Created | Renamed | Removed):
            self._name(event)
        elif isinstance(event, Wrote | Truncated):
            file = self._names[event.path]
            file.changes.append(_Change(event, through and isinstance(event, Wrote) and event.through))
            file.settle()
        elif isinstance(event, Synced):
            self._sync(event.path)

    def finish_write(self) -> None:
        """The write through that was taken last is over."""
        for file in self._files():
            for change in file.changes:
                if isinstance(change.event, Wrote) and change.event.through:
                    change.certain = True
            file.settle()

    @property
    def namings(self) -> int:
        """How many changes of names are not certain."""
        return len(self._namings)

    def uncertain(self) -> list[Wrote | Truncated]:
        """What is not certain of the files, in the order of `image`'s `kept`."""
        return [change.event for change in self._uncertain()]

    def image(self, namings: int, kept: Sequence[Kept]) -> dict[str, bytes]:
        """The files by name, where the first `namings` changes of names and `kept` of the others had got there."""
        names = dict(self._certain)
        for naming in self._namings[:namings]:
            naming.apply(names)
        choice = {id(change): ranges for change, ranges in zip(self._uncertain(), kept, strict=True)}
        return {path: file.content(choice) for path, file in names.items()}

    def _name(self, event: Created | Renamed | Removed) -> None:
        if isinstance(event, Created) and event.path in self._names:
            return
        naming = _Naming(event, _File() if isinstance(event, Created) else self._names[event.path])
        naming.apply(self._names)
        self._namings.append(naming)

    def _sync(self, path: str) -> None:
        if path not in self._names:
            # A folder. A rename out of another one settles what went before it there, too.
            self._namings.clear()
            self._certain = dict(self._names)
            return
        for change in self._names[path].changes:
            change.certain = True
        self._names[path].settle()

    def _uncertain(self) -> list[_Change]:
        return [change for file in self._files() for change in file.changes if not change.certain]

    def _files(self) -> list[_File]:
        """Every file that an image may have, in one order."""
        named = [*self._certain.values(), *(naming.file for naming in self._namings)]
        return list({id(file): file for file in named}.values())


def _apply(content: bytearray, event: Wrote | Truncated, kept: Kept | None) -> None:
    """`kept` None: all of it."""
    if isinstance(event, Truncated):
        if kept is None or kept:
            del content[event.size :]
            content.extend(bytes(event.size - len(content)))
        return
    for start, stop in ((0, len(event.data)),) if kept is None else kept:
        end = event.offset + stop
        content.extend(bytes(max(0, end - len(content))))
        content[event.offset + start : end] = event.data[start:stop]
