"""What a server puts up with: each limit at its default, or small, with the status and the text."""

import random
import socket
import threading
import time
from typing import Any, cast

import grpc
import pytest
from google.protobuf.message import DecodeError

from steelyard.v1 import datasets_pb2, runs_pb2
from steelyard_server.config import Settings
from steelyard_server.runs.errors import Exhausted
from steelyard_server.security.gate import Gate
from steelyard_server.service import edge, observe
from tests.robustness.network import noise

from .conftest import refusal, serving
from .test_rules import SERVED

LIST = "/steelyard.v1.DatasetService/ListDatasets"


def test_the_defaults_are_these(tmp_path):
    options = dict(edge._options(Settings(data_dir=tmp_path)))
    assert {name.removeprefix("grpc."): value for name, value in options.items()} == {
        "so_reuseport": 0,
        "max_metadata_size": 16384,
        "absolute_max_metadata_size": 16384,
        "max_concurrent_streams": 100,
        "max_connection_age_ms": 1_800_000,
        "max_connection_age_grace_ms": 60_000,
        "server_handshake_timeout_ms": 10_000,
        "max_receive_message_length": 16 << 20,
        "max_send_message_length": -1,
        "keepalive_time_ms": 5_000,
        "keepalive_timeout_ms": 10_000,
        "http2.ping_timeout_ms": 10_000,
        "keepalive_permit_without_calls": 1,
        "http2.min_recv_ping_interval_without_data_ms": 10_000,
    }
    never = dict(edge._options(Settings(data_dir=tmp_path, max_connection_age_seconds=0)))
    assert never["grpc.max_connection_age_ms"] == (1 << 31) - 1


def test_a_gate_lets_in_as_many_as_it_says():
    gate = Gate(2, "calls under way", "max_concurrent_calls")
    with (
        gate,
        gate,
        pytest.raises(Exhausted, match=r"at most 2 calls under way \(max_concurrent_calls\)"),
        gate,
    ):
        pass
    assert gate.inside == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    limits = {
        "max_concurrent_calls": 2,
        "max_open_streams": 3,
        "max_metadata_bytes": 2048,
        "handshake_timeout_seconds": 1,
        "call_threads": 2,
    }
    with (
        serving(tmp_path_factory.mktemp("limits"), **limits) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield server, channel


def test_calls_above_the_limit_are_refused_at_once_and_health_still_answers(place, monkeypatch, eventually):
    server, channel = place
    go_on = threading.Event()
    original = type(server._catalog).list_datasets

    def slow(catalog):
        assert go_on.wait(30)
        return original(catalog)

    monkeypatch.setattr(type(server._catalog), "list_datasets", slow)
    ask = channel.unary_unary(LIST)
    busy = [ask.future(b"", timeout=60) for _ in range(2)]
    eventually(lambda: server.guard._calls.inside == 2)
    for _ in range(3):
        code, text = refusal(ask, b"")
        assert code == "RESOURCE_EXHAUSTED"
        assert "at most 2 calls under way (max_concurrent_calls)" in text
    assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20) == b"\x08\x01"
    go_on.set()
    assert [one.result(30) for one in busy] == [b"", b""]
    assert ask(b"", timeout=20) == b""


def test_of_a_thousand_calls_that_a_stranger_takes_back_few_come_to_the_server(tmp_path, monkeypatch):
    came, name_of = [], observe._request_id

    def counted(details):
        came.append(details.method)
        return name_of(details)

    monkeypatch.setattr(observe, "_request_id", counted)
    with serving(tmp_path / "data") as server, noise.make(server.address, "rapid_reset", random.Random(1)):
        seen = 0
        while not came or len(came) > seen:
            seen = len(came)
            time.sleep(0.3)
    assert len(came) <= 100


def test_trainers_streams_take_no_place_of_calls_and_have_a_limit_of_their_own(place, eventually):
    server, channel = place
    train = channel.stream_stream("/steelyard.v1.TrainerService/Train")
    stop = threading.Event()

    def waits():
        stop.wait(30)
        yield from ()

    streams = [train(waits(), timeout=60) for _ in range(3)]
    eventually(lambda: server.guard._streams.inside == 3)
    assert channel.unary_unary(LIST)(b"", timeout=20) == b""
    code, text = refusal(train, iter(()))
    assert (code, "at most 3 streams open (max_open_streams)" in text) == ("RESOURCE_EXHAUSTED", True)
    assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20) == b"\x08\x01"
    for one in streams:
        one.cancel()
    stop.set()
    eventually(lambda: server.guard._streams.inside == 0)


def test_too_much_metadata_is_refused_always(place):
    _, channel = place
    ask = channel.unary_unary(LIST)
    assert ask(b"", metadata=(("x", "y" * 1000),), timeout=20) == b""
    for size in (2100, 2300, 2500, 4000):  # gRPC's own two limits leave a span in between to chance.
        assert refusal(ask, b"", metadata=(("x", "y" * size),))[0] == "RESOURCE_EXHAUSTED"


def test_connections_that_say_nothing_are_closed(place):
    server, channel = place
    host, _, port = server.address.rpartition(":")
    idle = [socket.create_connection((host, int(port)), timeout=30) for _ in range(50)]
    start = time.monotonic()
    for one in idle:
        with one:
            while one.recv(4096):
                pass
    assert time.monotonic() - start < 30
    assert channel.unary_unary(LIST)(b"", timeout=20) == b""


@pytest.mark.parametrize("method", sorted(SERVED))
def test_what_is_no_message_is_an_invalid_argument(place, method):
    _, channel = place
    for data in (b"\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"):
        try:
            cast("Any", SERVED[method]).request_deserializer(data)
        except DecodeError:
            ask = channel.stream_stream(method)
            code, text = refusal(ask, iter([data]))
            assert (code, "expected a message of" in text) == ("INVALID_ARGUMENT", True), (method, data)


def test_a_unary_call_without_a_message_is_an_invalid_argument(place):
    _, channel = place
    assert refusal(channel.stream_stream(LIST), iter(()))[0] == "INVALID_ARGUMENT"


QUOTAS = """
[[principals]]
name = "hasty"
local = true
grants = [{ verbs = ["read", "admin"], runs = ["*"], datasets = ["*"] }]
quota = { calls_per_second = 5, bytes_per_second = "2KiB" }
"""


def test_a_principal_is_held_to_its_quota_of_calls_and_of_bytes(tmp_path):
    access = tmp_path / "access.toml"
    access.write_text(QUOTAS)
    tmp_path.chmod(0o700)
    with (
        serving(tmp_path / "data", listen=f"unix:{tmp_path}/s", access=access) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        ask: Any = channel.unary_unary(LIST)
        codes, text = [], ""
        for _ in range(40):
            try:
                ask(b"", timeout=20)
                codes.append("OK")
            except grpc.RpcError as error:
                codes.append(error.code().name)
                text = str(error.details())
        assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
        assert "principal 'hasty' is over its quota of calls a second; try again in 0." in text
        assert server.guard.tally.quota_refused["hasty", "calls"] == codes.count("RESOURCE_EXHAUSTED")
        time.sleep(1.1)
        big = runs_pb2.GetRunRequest(name="x" * 8192).SerializeToString()
        get: Any = channel.unary_unary("/steelyard.v1.RunService/GetRun")
        assert refusal(get, big)[0] == "NOT_FOUND"
        code, text = refusal(ask, b"")
        assert (code, "quota of bytes a second" in text) == ("RESOURCE_EXHAUSTED", True)
        health: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert health(b"", timeout=20) == b"\x08\x01"


def test_a_name_that_is_too_long_does_not_make_the_answer_too_long(place):
    _, channel = place
    get = channel.unary_unary("/steelyard.v1.DatasetService/GetDataset")
    code, text = refusal(get, datasets_pb2.GetDatasetRequest(name="x" * 100_000).SerializeToString())
    assert (code, len(text)) == ("NOT_FOUND", 2003)
