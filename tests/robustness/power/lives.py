"""Starts the zygote and asks it for lives, under strace where they are to be disturbed or recorded."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tests.robustness.power import zygote
from tests.robustness.power.conversation import Conversation
from tests.robustness.power.life import ALL, BrokenPromiseError, Durability, Outcome
from tests.robustness.power.strace import Attached

Wait = Literal["opening", "serving"]
End = Literal["close", "exit", "outcome"]


class Lives:
    """One zygote, one life at a time. What lives write to their standard error is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._zygote = Conversation(zygote.__file__, folder / "zygote.log")

    def __enter__(self) -> Lives:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zygote.end()

    def live(
        self,
        directory: Path,
        durability: Durability,
        part: tuple[int, int],
        end: End,
        *,
        patient: bool = False,
        wait: Wait | None = None,
        strace: tuple[str, ...] = (),
        unsynced: bool = False,
    ) -> bool:
        """Whether it came to its end; False where it was killed. BrokenPromiseError with its traceback where it
        failed."""
        notes = notes_of(directory)
        order: dict[str, Any] = {
            "directory": str(directory),
            "notes": str(notes),
            "durability": durability,
            "first": part[0],
            "stop": part[1],
            "end": end,
            "patient": patient,
            "wait": wait,
            "unsynced": unsynced,
        }
        self._zygote.say(json.dumps(order))
        answer = json.loads(self._zygote.hear())
        if "ready" in answer:
            tracer = Attached(answer["ready"], *strace)
            answer = json.loads(self._zygote.hear())
            tracer.wait()
        if answer["exit"] in (0, -signal.SIGKILL):
            return bool(answer["exit"] == 0)
        error = Path(f"{notes}.error")
        text = error.read_text() if error.exists() else "no traceback"
        raise BrokenPromiseError(f"status {answer['exit']}: {text}")

    def finish(self, directory: Path, durability: Durability) -> Outcome:
        """Goes on undisturbed from where the notes end, and returns what is left."""
        if not self.live(directory, durability, ALL, "outcome"):
            raise BrokenPromiseError("an undisturbed life was killed")
        found = json.loads(Path(f"{notes_of(directory)}.outcome").read_text())
        return Outcome(tuple(found["events"]), found["readable"])


def notes_of(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.notes")
