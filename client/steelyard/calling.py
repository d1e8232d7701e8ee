"""What goes along with every call: an id to find it by in the server's log, and the caller's trace."""

from __future__ import annotations

import importlib
import secrets
import sys

Metadata = tuple[tuple[str, str], ...]

REQUEST_ID = "x-request-id"


def metadata() -> Metadata:
    """The metadata of one call: an id of its own, and W3C trace context where a span of OpenTelemetry's is active.
    Whoever asks again for the same thing shows the same."""
    return ((REQUEST_ID, secrets.token_hex(8)), *_trace())


def _trace() -> Metadata:
    # Nobody has a span who has not imported it; nothing is imported, or needed, for those who have none.
    if "opentelemetry.trace" not in sys.modules:
        return ()
    carrier: dict[str, str] = {}
    module = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
    module.TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
