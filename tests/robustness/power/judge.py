"""Whether what a power cut left keeps what was promised.

The journal went through a known sequence of contents. Whatever the cut, the journal is one of them, not before the last
one that the callers had been told of; and the run serves what an undisturbed one served from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.robustness.power.images import Image
from tests.robustness.power.life import MARK, STAGES, Durability
from tests.robustness.power.trace import Event, Told, Wrote

Contents = tuple[str, ...]


class Judge:
    """`whole` are the findings for the images in which all was there, in order: what the run went through."""

    def __init__(
        self,
        events: Sequence[Event],
        durability: Durability,
        whole: Iterable[dict[str, Any]],
        calm: Sequence[Sequence[str]],
    ) -> None:
        found = list(whole)
        self._events = events
        self._durability = durability
        self._rows = {finding["rows"] for finding in found}
        self._history = _history([tuple(finding["events"] or ()) for finding in found])
        self._place = {contents: place for place, contents in enumerate(self._history)}
        self._served = {(note[1], note[2]): note[3] for note in calm if note[0] == "served"}
        self._owed = self._owed_after_each()

    def fault(self, image: Image, found: dict[str, Any]) -> str | None:
        """What is wrong with it, or None."""
        if "error" in found:
            return f"damaged: {found['error']}"
        contents = tuple(found["events"] or ())
        if contents not in self._place:
            return f"a journal that never was: {contents}"
        if self._durability == "sync" and found["rows"] not in self._rows:
            return "rows that never were"
        owed = self._owed[self._known(image.at)]
        if self._place[contents] < owed:
            return f"lost: {sorted(set(self._history[owed]) - set(contents))}"
        return self._wrong_batches(found, contents)

    def _wrong_batches(self, found: dict[str, Any], contents: Contents) -> str | None:
        reported = sum(event.startswith("reported ") for event in contents)
        if [step for step, _ in found["next"]] != ([reported, reported + 1] if contents else []):
            return f"after {reported} reported steps it serves {found['next']}"
        for step, digest in found["next"]:
            expected = self._served.get((str(found["generation"]), str(step)), digest)
            if digest != expected:
                return f"step {step} is {digest}; undisturbed it was {expected}"
        return None

    def _known(self, at: int) -> int:
        """Up to which event the callers' knowledge binds when the power goes during event `at`.

        Under durability interval: what was told before the commit that ended last began. A commit begins with the first
        write of data.mdb after the one before.
        """
        if self._durability == "sync":
            return at
        begun: int | None = None
        known = 0
        for number, event in enumerate(self._events[:at]):
            if not isinstance(event, Wrote) or not event.path.endswith("data.mdb"):
                continue
            begun = number if begun is None else begun
            if event.through:
                known, begun = begun, None
        return known

    def _owed_after_each(self) -> list[int]:
        """For each event, the place in the history that callers knew to be reached before it."""
        owed, place = [], 0
        for event in self._events:
            owed.append(place)
            if isinstance(event, Told):
                place = self._first_with(_said(event.words), place)
        return [*owed, place]

    def _first_with(self, holds: Callable[[Contents], bool], place: int) -> int:
        for later in range(place, len(self._history)):
            if holds(self._history[later]):
                return later
        raise AssertionError(f"callers were told what the journal never held after {self._history[place]}")


def _history(found: Sequence[Contents]) -> list[Contents]:
    """Each content once, in order. What one commit added together might have come one by one."""
    history: list[Contents] = [()]
    for contents in found:
        before = history[-1]
        if contents[: len(before)] == before:
            history += [contents[:length] for length in range(len(before) + 1, len(contents) + 1)]
        else:
            history.append(contents)
    return history


def _said(words: Sequence[str]) -> Callable[[Contents], bool]:
    """What a note says of the journal."""
    match words:
        case ["served", _, step, digest]:
            return lambda contents: _any(contents, f"drawn {step} {digest} ")
        case ["acked", _, step]:
            return lambda contents: _any(contents, f"reported {step} ")
        case ["done", stage]:
            return _DONE.get(STAGES[int(stage)][0], _nothing)
    return _nothing


def _any(contents: Contents, start: str) -> bool:
    return any(event.startswith(start) for event in contents)


def _nothing(contents: Contents) -> bool:
    return True


_DONE: dict[str, Callable[[Contents], bool]] = {
    "create": lambda contents: _any(contents, "RunCreated("),
    "bookmark": lambda contents: _any(contents, "Bookmarked("),
    "rewind": lambda contents: not _any(contents, f"drawn {MARK} "),
    "grow": lambda contents: _any(contents, "DatasetGrown("),
}
