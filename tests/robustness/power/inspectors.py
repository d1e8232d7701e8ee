"""Has images inspected by a process that may die of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.robustness.power import inspector
from tests.robustness.power.conversation import Conversation, Silence


class Inspector:
    """Lays images out in `folder`, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._directory = folder / "image"
        self._log = folder / "inspector.log"
        self._process: Conversation | None = None

    def __enter__(self) -> Inspector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def inspect(self, files: dict[str, bytes]) -> dict[str, Any]:
        """What the inspector found; {"error": ...} where it died or did not end."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir()
        for name, content in files.items():
            path = self._directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if self._process is None:
            self._process = Conversation(inspector.__file__, self._log)
        try:
            self._process.say(str(self._directory))
            found: dict[str, Any] = json.loads(self._process.hear())
        except Silence as silence:
            self._end()
            return {"error": f"the process that opened it: {silence}"}
        return found

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()
