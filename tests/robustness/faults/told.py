"""What a client was told, batch by batch, in a file that outlives every kill: records of one size, written at once."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

_RECORD = struct.Struct("<dqQq")


@dataclass(frozen=True, slots=True)
class Told:
    """A batch that came: when (seconds of time.monotonic, which processes of a machine share), its step and digest, and
    the first step whose report the client did not know to be acknowledged just then."""

    at: float
    step: int
    digest: int
    acknowledged: int


class Teller:
    """Writes the records of one client."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def tell(self, at: float, step: int, digest: int, acknowledged: int) -> None:
        os.write(self._descriptor, _RECORD.pack(at, step, digest, acknowledged))


class Listener:
    """Reads them, each once."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def new(self) -> list[Told]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        data = data[: len(data) - len(data) % _RECORD.size]
        self._read += len(data)
        return [Told(*one) for one in _RECORD.iter_unpack(data)]
