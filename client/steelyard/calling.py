"""What goes along with every call: an id to find it by in the server's log, and the caller's trace."""

from __future__ import annotations

import importlib
import secrets
import sys

Metadata = tuple[tuple[str, str], ...]

REQUEST_ID = "x-request-id"


def metadata(of: Metadata | None = None) -> Metadata:
    """The metadata of one call: an id of its own, and W3C trace context where a span of OpenTelemetry's is active; `of`
    another moment, where that is not of now. Whoever asks again for the same thing shows the same."""
    return ((REQUEST_ID, secrets.token_hex(8)), *(trace() if of is None else of))


def trace() -> Metadata:
    """The trace context of the span that is active in this thread; nothing where there is none."""
    # Nobody has a span who has not imported it; nothing is imported, or needed, for those who have none.
    if "opentelemetry.trace" not in sys.modules:
        return ()
    carrier: dict[str, str] = {}
    module = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
    module.TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
