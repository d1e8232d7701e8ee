"""A span a call, child of the caller's; sent to a collector by OTLP; what is said where the packages are missing."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import steelyard
from steelyard.v1 import runs_pb2, trainer_pb2
from steelyard_server.observing import tracing
from steelyard_server.observing.tracing import OtelTraces

TRACE, PARENT = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
TRACEPARENT = f"00-{TRACE:032x}-{PARENT:016x}-01"


@pytest.fixture
def traced(watched, monkeypatch):
    """A server that traces into memory, and the spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "configured", lambda: OtelTraces(provider))
    return watched(tracing=True), exporter


def test_a_call_is_a_span_of_its_own_or_the_child_of_its_callers(traced, raw_of, eventually):
    server, exporter = traced
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    client.create_run("r", dataset="d", batch_size=8)
    bare = raw_of(server.server.address)
    bare.runs.GetStats(
        runs_pb2.GetStatsRequest(name="r"), timeout=20, metadata=[("traceparent", TRACEPARENT)]
    )
    with contextlib.suppress(grpc.RpcError):
        bare.runs.GetStats(runs_pb2.GetStatsRequest(name="none"), timeout=20)
    # The first is of the client, which asks what the server can do.
    spans = eventually(lambda: len(found := exporter.get_finished_spans()) == 5 and found)[1:]
    assert [one.name for one in spans] == [
        "steelyard.v1.DatasetService/CreateDataset",
        "steelyard.v1.RunService/CreateRun",
        "steelyard.v1.RunService/GetStats",
        "steelyard.v1.RunService/GetStats",
    ]
    created, _, child, refused = spans
    assert created.kind is SpanKind.SERVER
    assert created.parent is None
    assert dict(created.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "steelyard.v1.DatasetService",
        "rpc.method": "CreateDataset",
        "rpc.grpc.status_code": 0,
    }
    assert (child.context.trace_id, child.parent.span_id) == (TRACE, PARENT)
    assert refused.attributes["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    # The caller's mistake is no error of the server.
    assert refused.status.status_code is StatusCode.UNSET
    assert len({one.context.trace_id for one in spans}) == 4


def test_a_stream_is_one_span_from_join_to_end(traced, raw_of, eventually):
    server, exporter = traced
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    client.create_run("r", dataset="d", batch_size=8)
    exporter.clear()
    trainer = raw_of(server.server.address).trainer()
    trainer.join("r")
    trainer.train(3, lambda ids, step: ids)
    assert exporter.get_finished_spans() == ()
    trainer.send(leave=trainer_pb2.Leave())
    trainer.end()
    [span] = eventually(exporter.get_finished_spans)
    assert (span.name, span.attributes["rpc.grpc.status_code"]) == ("steelyard.v1.TrainerService/Train", 0)


def test_the_span_of_a_training_loop_is_the_parent_of_its_calls_and_of_its_stream(traced, eventually):
    """From one side to the other: the client is that of any program, whose spans are its own."""
    server, exporter = traced
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    run = client.create_run("r", dataset="d", batch_size=8)
    exporter.clear()
    with TracerProvider().get_tracer("trainer").start_as_current_span("epoch") as mine:
        client.list_datasets()
        session = run.join(timeout=30)
    batch = session.next()
    session.report(batch, [1.0] * len(batch))
    session.leave()
    client.list_runs()
    ended = eventually(lambda: len(found := exporter.get_finished_spans()) == 3 and found)
    spans = {one.name: one for one in ended}
    call, stream = (
        spans[f"steelyard.v1.{name}"] for name in ("DatasetService/ListDatasets", "TrainerService/Train")
    )
    for one in (call, stream):
        assert one.context.trace_id == mine.get_span_context().trace_id
        assert one.parent.span_id == mine.get_span_context().span_id
    assert spans["steelyard.v1.RunService/ListRuns"].parent is None


def test_a_failure_of_the_server_is_an_error_of_its_span(traced, monkeypatch, eventually):
    server, exporter = traced
    monkeypatch.setattr(server.server._catalog, "list_runs", lambda: 1 / 0)
    with pytest.raises(steelyard.SteelyardError):
        steelyard.connect(server.server.address).list_runs()
    [span] = eventually(exporter.get_finished_spans)
    assert span.status.status_code is StatusCode.ERROR
    assert "ZeroDivisionError" not in str(span.to_json())


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.received: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request, context):
        self.received.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_a_collector_gets_the_spans_by_otlp(watched, monkeypatch):
    collector = Collector()
    serving = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, serving)
    port = serving.add_insecure_port("127.0.0.1:0")
    serving.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    try:
        server = watched(tracing=True)
        client = steelyard.connect(server.server.address)
        client.list_datasets()
        # What is left is sent at the end.
        server.server.stop()
    finally:
        serving.stop(None)
    [resource] = [spans for request in collector.received for spans in request.resource_spans]
    told = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert (told["service.name"], told["deployment.environment.name"]) == ("steelyard", "test")
    [span] = [one for scope in resource.scope_spans for one in scope.spans]
    assert span.name == "steelyard.v1.DatasetService/ListDatasets"
    assert span.kind == 2


def test_the_name_of_the_service_is_the_environments(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    traces = tracing.configured()
    assert isinstance(traces, OtelTraces)
    try:
        assert traces._provider.resource.attributes["service.name"] == "ours"
    finally:
        traces.close()


def test_tracing_without_its_packages_is_a_configuration_that_is_refused(tmp_path):
    """And without it, none of them is imported."""
    program = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Without())
from pathlib import Path
from steelyard_server.config import ConfigError, Settings
from steelyard_server.server import Server
folder = Path(sys.argv[1])
server = Server(Settings(data_dir=folder / "a", listen="127.0.0.1:0", kernels="numpy"))
server.start()
server.stop()
try:
    Server(Settings(data_dir=folder / "b", listen="127.0.0.1:0", kernels="numpy", tracing=True)).start()
except ConfigError as error:
    print(error)
print((folder / "b").exists())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == (
        "tracing = true needs OpenTelemetry, of which opentelemetry is not installed: pip install"
        " 'steelyard[server,otel]', or leave tracing off\nFalse\n"
    )


def test_a_collector_that_is_away_holds_up_no_stop(watched, monkeypatch):
    """One that takes connections and says nothing: the exporter waits for it, and longer than it is told to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setattr(tracing, "_CLOSE_SECONDS", 0.2)
        server = watched(tracing=True, kernels="numpy").server
        steelyard.connect(server.address).list_datasets()
        began = time.monotonic()
        assert server.stop(5.0)
        assert time.monotonic() - began < 3.0
