"""EventService."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from steelyard.v1 import events_pb2 as pb
from steelyard_server.core.events import BatchDrawn, Event, PolicyChanged
from steelyard_server.runs.catalog import Catalog
from steelyard_server.runs.errors import Invalid, Missing, Superseded
from steelyard_server.runs.reader import JournalReader, Rows
from steelyard_server.service import convert_events


class EventService:
    """Reads beside the run, so a reader of its whole past does not hold up its trainers."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def StreamEvents(self, request: pb.StreamEventsRequest) -> Iterator[pb.StreamEventsResponse]:
        from_step = request.from_step if request.HasField("from_step") else None
        to_step = request.to_step if request.HasField("to_step") else None
        if from_step is not None and to_step is not None and from_step > to_step:
            raise Invalid(f"expected a from_step of at most to_step; got {from_step} and {to_step}")
        run = self._catalog.run(request.name)
        try:
            reader = run.reader()
            for page in _with_next_step(reader, reader.pages(*reader.span(from_step, to_step))):
                yield from convert_events.responses(page)
        except Superseded:
            # The records of a deleted run go, as those of one that went back do.
            if self._catalog.run(request.name) is not run:
                raise Missing(f"run {request.name!r} was deleted") from None
            raise


def _with_next_step(
    reader: JournalReader, pages: Iterable[Rows]
) -> Iterator[list[tuple[int, Event, int | None]]]:
    """Each event with the next step to be drawn behind it; None before the first draw, where no event asks for it."""
    next_step: int | None = None
    for page in pages:
        rows: list[tuple[int, Event, int | None]] = []
        for record, event in page:
            if isinstance(event, BatchDrawn):
                next_step = event.step + 1
            elif isinstance(event, PolicyChanged) and next_step is None:
                next_step = reader.next_step_at(record)
            rows.append((record, event, next_step))
        yield rows
