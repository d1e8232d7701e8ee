"""EventService."""

from __future__ import annotations

from collections.abc import Iterator

from steelyard.v1 import events_pb2 as pb
from steelyard_server.runs.catalog import Catalog
from steelyard_server.runs.errors import Invalid, Missing, Superseded
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
            for page in reader.pages(*reader.span(from_step, to_step)):
                yield from convert_events.responses(page)
        except Superseded:
            # The records of a deleted run go, as those of one that went back do.
            if self._catalog.run(request.name) is not run:
                raise Missing(f"run {request.name!r} was deleted") from None
            raise
