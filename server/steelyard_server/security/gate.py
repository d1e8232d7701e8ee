"""How many may be inside at a time. Whoever comes when it is full is refused at once: waiting would only add to it."""

from __future__ import annotations

from types import TracebackType

from steelyard_server.runs.errors import Exhausted

_RETRY_SECONDS = 0.1
"""Told to whoever is refused: about as long as the slower calls take. Clients wait longer each time."""


class Gate:
    """For one thread (the event loop).

    with gate: ...        # Exhausted where `limit` are inside
    """

    def __init__(self, limit: int, what: str, setting: str) -> None:
        self._limit = limit
        self._text = f"expected at most {limit} {what}{f' ({setting})' * bool(setting)}; try again later"
        self.inside = 0

    def __enter__(self) -> None:
        if self.inside >= self._limit:
            raise Exhausted(self._text, retry_after=_RETRY_SECONDS)
        self.inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.inside -= 1
