"""Traces by OpenTelemetry, where its packages are installed (extra `otel`) and the setting `tracing` is on.

    OTEL_SERVICE_NAME=steelyard OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317 steelyard serve --tracing ...

A span a call, named as its method, child of the caller's where that sends a `traceparent`. Exporter, sampling and
resource are configured as for any program, by the variables OTEL_*.

Not by the official instrumentation: it takes each handler of a stream for a generator, which that of trainers is not.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from structlog.contextvars import bind_contextvars

from steelyard_server.config import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_CLOSE_SECONDS = 2.0
_SERVERS_FAULT = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""Codes that make a server's span an error, by the semantic conventions."""
_NUMBERS = {
    name: number
    for number, name in enumerate(
        [
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        ]
    )
}
Metadata = Sequence[tuple[str, Any]]


class Span(Protocol):
    def end(self, code: str) -> None: ...


class Traces(Protocol):
    def begin(self, method: str, metadata: Any) -> Span:
        """The span of a call, current in this task until it ends."""
        ...

    def close(self) -> None:
        """Sends what is left, for a moment."""
        ...


class _Untraced:
    def begin(self, method: str, metadata: Any) -> Span:
        return self

    def end(self, code: str) -> None:
        pass

    def close(self) -> None:
        pass


NO_TRACES: Traces = _Untraced()


def configured() -> Traces:
    """Traces as the environment says. ConfigError where the packages are not there."""
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"tracing = true needs OpenTelemetry, of which {error.name} is not installed: pip install"
            " 'steelyard[server,otel]', or leave tracing off"
        ) from None
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "steelyard"}))
    # Not at exit: that would wait for a collector that is away.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTraces(provider)


class OtelTraces:
    """By a provider of the server's own: that of the program it is embedded in stays as it is."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("steelyard_server")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, metadata: Any) -> Span:
        from opentelemetry import context
        from opentelemetry.trace import SpanKind, set_span_in_context

        carrier = {key: value for key, value in metadata or () if key in self._propagator.fields}
        service, _, name = method.strip("/").partition("/")
        span = self._tracer.start_span(
            f"{service}/{name}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
        )
        bind_contextvars(trace_id=f"{span.get_span_context().trace_id:032x}")
        # The task ends with the call, and its context with it.
        context.attach(set_span_in_context(span))
        return _OtelSpan(span)

    def close(self) -> None:
        # Where the collector is away, shutting down tries for longer than it is told to.
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)


class _OtelSpan:
    def __init__(self, span: Any) -> None:
        self._span = span

    def end(self, code: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("rpc.grpc.status_code", _NUMBERS[code])
        if code in _SERVERS_FAULT:
            self._span.set_status(Status(StatusCode.ERROR, code))
        self._span.end()
