"""What the log tells of calls, and what it never tells."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import re
import subprocess
import sys
import time
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from structlog.contextvars import bind_contextvars

import steelyard
from steelyard import wire
from steelyard.v1 import arrays_pb2, runs_pb2, trainer_pb2
from steelyard_server.cli import logs
from steelyard_server.log import logger
from steelyard_server.runs.catalog import Catalog
from steelyard_server.service import edge, observe
from steelyard_server.service.observe import Observe

TOKEN = "eyJhbGciOiJIUzI1NiJ9.TOKENMARKER.c2lnbmF0dXJl"
MARKER = b"PAYLOADMARKER!!!"
LOSS = 31415.926


@pytest.fixture
def calls(caplog):
    """The lines that tell of calls."""
    caplog.set_level(logging.DEBUG, "steelyard_server")

    def told(**having):
        lines = [
            one.msg | {"level": one.levelname.lower()} for one in caplog.records if isinstance(one.msg, dict)
        ]
        return [one for one in lines if one["event"] == "call" and having.items() <= one.items()]

    return told


def test_a_call_is_one_line_that_says_who_what_and_how_it_ended(watched, calls, raw_of, eventually):
    server = watched()
    bare = raw_of(server.server.address)
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    client.create_run("r", dataset="d", batch_size=8)
    get = runs_pb2.GetBatchRequest(name="r", step=5)
    for given in ("trace-1:a.b_C", "x" * 65, "no spaces", ""):
        with contextlib.suppress(grpc.RpcError):
            bare.runs.GetBatch(get, timeout=20, metadata=[("x-request-id", given)])
    method = "/steelyard.v1.RunService/GetBatch"
    lines = eventually(lambda: len(found := calls(method=method)) == 4 and found)
    for line in lines:
        assert (line["code"], line["run"], line["step"], line["level"]) == ("NOT_FOUND", "r", 5, "info")
        assert 0 < line["seconds"] < 20
    assert lines[0]["request_id"] == "trace-1:a.b_C"
    made = [line["request_id"] for line in lines[1:]]
    assert len(set(made)) == 3
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in made)
    [created] = calls(method="/steelyard.v1.DatasetService/CreateDataset")
    assert (created["dataset"], created["level"]) == ("d", "debug")


def test_a_stream_is_told_of_when_it_ends_with_its_run_and_rank(watched, calls, raw_of, eventually):
    server = watched()
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    client.create_run("r", dataset="d", batch_size=8)
    trainer = raw_of(server.server.address).trainer()
    trainer.join("r", rank=0)
    assert not calls(method="/steelyard.v1.TrainerService/Train")
    trainer.send(leave=trainer_pb2.Leave())
    trainer.end()
    [line] = eventually(lambda: calls(method="/steelyard.v1.TrainerService/Train"))
    assert (line["run"], line["rank"], line["code"], line["level"]) == ("r", 0, "OK", "info")


def test_a_name_that_would_move_a_terminals_cursor_is_escaped(watched, calls, raw_of, eventually):
    bare = raw_of(watched().server.address)
    name = "a\x1b[2J\u2028b\nc" + "\x9b" * 500
    with contextlib.suppress(grpc.RpcError):
        bare.runs.GetRun(runs_pb2.GetRunRequest(name=name), timeout=20)
    trainer = bare.trainer()
    trainer.send(join=trainer_pb2.Join(run=name, world_size=1, attempt="a", session="s"))
    assert trainer.end() is not None
    found = eventually(lambda: len(lines := calls(code="NOT_FOUND")) == 2 and lines)
    for line in found:
        assert line["run"].startswith(r"a\x1b[2J\u2028b\nc\x9b")
        assert line["run"].isprintable()


def test_a_slow_call_and_one_that_is_our_fault_are_warnings(watched, calls, monkeypatch, eventually):
    server = watched()
    client = steelyard.connect(server.server.address)
    monkeypatch.setattr(observe, "SLOW_SECONDS", 0.05)
    datasets = Catalog.list_datasets

    def slow(self):
        time.sleep(0.1)
        return datasets(self)

    monkeypatch.setattr(Catalog, "list_datasets", slow)
    client.list_datasets()
    [line] = calls(method="/steelyard.v1.DatasetService/ListDatasets")
    assert (line["code"], line["level"]) == ("OK", "warning")
    monkeypatch.setattr(Catalog, "list_runs", lambda self: 1 / 0)
    with pytest.raises(steelyard.SteelyardError):
        client.list_runs()
    [line] = eventually(lambda: calls(method="/steelyard.v1.RunService/ListRuns"))
    assert (line["code"], line["level"]) == ("INTERNAL", "warning")


def test_a_check_that_succeeds_ends_as_ok_and_long_calls_of_an_operator_are_no_warnings(
    watched, calls, tmp_path, monkeypatch, eventually
):
    server = watched(backup_to=str(tmp_path / "backups"))
    client = steelyard.connect(server.server.address)
    monkeypatch.setattr(observe, "SLOW_SECONDS", 0.0)
    client.admin.check()
    [line] = eventually(lambda: calls(method="/steelyard.v1.AdminService/Check"))
    assert (line["code"], line["level"]) == ("OK", "info")
    client.admin.backup()
    [line] = eventually(lambda: calls(method="/steelyard.v1.AdminService/Backup"))
    assert (line["code"], line["level"]) == ("OK", "debug")


def test_what_an_inner_interceptor_binds_stands_in_every_line_of_the_call(
    watched, calls, caplog, monkeypatch
):
    """A principal, for one: also in what is logged on the threads that answer."""

    class Guard(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            bind_contextvars(principal="team-a")
            return await continuation(details)

    build: Any = edge.build

    def guarded(*arguments):
        *others, interceptors = arguments
        assert isinstance(interceptors[0], Observe)
        return build(*others, [*interceptors, Guard()])

    monkeypatch.setattr(edge, "build", guarded)
    server = watched()
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    client.create_run("r", dataset="d", batch_size=8)
    [line] = calls(method="/steelyard.v1.RunService/CreateRun")
    assert line["principal"] == "team-a"
    [created] = [
        one.msg for one in caplog.records if isinstance(one.msg, dict) and one.msg["event"] == "run_created"
    ]
    assert (created["principal"], created["request_id"]) == ("team-a", line["request_id"])


def filled(descriptor, depth=0):
    """A message with something in every field; the last of a oneof stands."""
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if field.message_type is not None:
            if depth > 3 or field.message_type.GetOptions().map_entry:
                continue
            value = filled(field.message_type, depth + 1)
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                getattr(message, field.name).CopyFrom(value)
            continue
        value = {
            FieldDescriptor.CPPTYPE_STRING: MARKER if field.type == FieldDescriptor.TYPE_BYTES else "r",
            FieldDescriptor.CPPTYPE_FLOAT: LOSS,
            FieldDescriptor.CPPTYPE_DOUBLE: LOSS,
            FieldDescriptor.CPPTYPE_BOOL: True,
        }.get(field.cpp_type, 2)
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    return message


def every_method():
    from google.protobuf import descriptor_pool

    for name in edge.SERVICES:
        yield from descriptor_pool.Default().FindServiceByName(name).methods


def test_no_log_at_any_level_holds_a_token_or_what_was_sent(tmp_path):
    """Every call there is, well-formed and not, with a token, and with numbers and bytes that are looked for after."""
    log = tmp_path / "log"
    port = tmp_path / "port"
    command = [sys.executable, "-m", "steelyard_server", "serve", "--data-dir", str(tmp_path / "data")]
    flags = [
        "--listen",
        "127.0.0.1:0",
        "--port-file",
        str(port),
        "--log-level",
        "debug",
        "--log-format",
        "json",
    ]
    with log.open("wb") as stderr:
        server = subprocess.Popen([*command, *flags, "--kernels", "numpy"], stderr=stderr, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not port.exists():
            assert time.monotonic() < deadline, log.read_text()
            assert server.poll() is None, log.read_text()
            time.sleep(0.02)
        address = f"127.0.0.1:{port.read_text().strip()}"
        called = _call_everything(address)
    finally:
        server.terminate()
        server.wait(30)
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    told = {line["method"] for line in lines if line["event"] == "call"}
    assert called <= told
    assert any(line["event"] == "report_refused" for line in lines)
    secrets = [
        TOKEN,
        "TOKENMARKER",
        MARKER.decode(),
        MARKER.hex(),
        base64.b64encode(MARKER).decode()[:16],
        "31415.9",
        np.float32(LOSS).tobytes().hex(),
    ]
    assert [one for one in secrets if one in text] == []


def _call_everything(address):
    client = steelyard.connect(address)
    client.create_dataset("r", 50)
    client.create_run("r", dataset="r", batch_size=8, on_nonfinite="reject")
    metadata = [("authorization", f"Bearer {TOKEN}"), ("x-token-bin", TOKEN.encode())]
    called = set()
    with grpc.insecure_channel(address) as channel:
        for method in every_method():
            path = f"/{method.containing_service.full_name}/{method.name}"
            called.add(path)
            if method.name == "Train":
                continue
            make: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
            for request in (filled(method.input_type).SerializeToString(), b"", b"\xff" + MARKER):
                with contextlib.suppress(grpc.RpcError):
                    answer = make(path)(request, timeout=20, metadata=metadata)
                    for _ in answer if method.server_streaming else ():
                        pass
        client.create_dataset("t", 50)
        client.create_run("t", dataset="t", batch_size=8, on_nonfinite="reject")
        _train(channel, metadata)
    client.close()
    return called


def _train(channel, metadata):
    losses = [np.full(8, LOSS), np.array([LOSS, np.nan] * 4), np.full(9, LOSS)]
    method = "/steelyard.v1.TrainerService/Train"

    def requests():
        join = trainer_pb2.Join(run="t", rank=0, world_size=1, attempt="a", session="s", credit=1)
        messages = [trainer_pb2.TrainerMessage(join=join)]
        for one in losses:
            for digest in (0, 1):
                values = arrays_pb2.Signal(name="loss", values=wire.pack(one, np.float32))
                report = trainer_pb2.Report(step=0, digest=digest, signals=[values])
                messages.append(trainer_pb2.TrainerMessage(report=report))
        yield trainer_pb2.TrainRequest(messages=messages).SerializeToString()
        time.sleep(0.5)
        yield b"\xff" + MARKER

    with contextlib.suppress(grpc.RpcError):
        for _ in channel.stream_stream(method)(requests(), timeout=10, metadata=metadata):
            pass


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_shows_no_local_variables(form, monkeypatch):
    """The console's own formatter does, where it finds rich."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    grpc_level = logging.getLogger("grpc").level
    try:
        logs.configure("debug", form)
        _fail("".join(["LOCALS", "MARKER"]))
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.getLogger("grpc").setLevel(grpc_level)
    assert "ZeroDivisionError" in stream.getvalue()
    assert "LOCALSMARKER" not in stream.getvalue()


def _fail(secret):
    try:
        len(secret) / 0
    except ZeroDivisionError:
        logger("steelyard_server.test").exception("failed")
