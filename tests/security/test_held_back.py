"""Callers who hold something back: calls begun while they were allowed, and sent later; streams that send nothing; all
places of health taken."""

import asyncio
import contextlib
import hashlib
import queue
import threading
import time
from functools import partial
from typing import Any

import grpc
import pytest

from steelyard.v1 import (
    datasets_pb2,
    events_pb2,
    runs_pb2,
    server_pb2,
    server_pb2_grpc,
    trainer_pb2,
)
from steelyard_server.service import convert_events, guard, guarded

from .conftest import AUDIENCE, bearer, refusal, replace, serving, tls_channel
from .test_streams import ROOT, TOKEN, Trainer, table

GET = "/steelyard.v1.RunService/GetRun"
HEALTH = "/grpc.health.v1.Health/"


@pytest.fixture
def local(tmp_path):
    """A server at a unix socket, with principals by token, and the access file."""
    tmp_path.chmod(0o700)
    access = tmp_path / "access.toml"
    access.write_bytes(table('["read", "draw", "report"]'))
    with (
        serving(tmp_path / "data", listen=f"unix:{tmp_path}/s", access=access) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield server, channel, access


class Later:
    """A unary call whose one message is sent when `send` is called."""

    def __init__(self, channel, method, metadata):
        self._go = threading.Event()
        self._data = b""
        self.call: Any = channel.stream_stream(method)(self._requests(), metadata=metadata, timeout=30)

    def _requests(self):
        assert self._go.wait(30)
        yield self._data

    def send(self, data):
        self._data = data
        self._go.set()
        return refusal(lambda timeout: self.call)


def forward(server):
    """Looks at the access file now, not within a second."""
    server.guard._gatekeeper._table.current()


def test_a_call_is_judged_by_the_rights_of_when_it_is_sent_whole(local, eventually):
    server, channel, access = local
    waiting = [Later(channel, GET, bearer(TOKEN)) for _ in range(2)]
    eventually(lambda: server.guard._gatekeeper.tally.auth_failures == {})
    time.sleep(0.3)  # both are admitted, and wait to be read
    asked = runs_pb2.GetRunRequest(name="r").SerializeToString()
    replace(access, table('["draw", "report"]'))
    forward(server)
    assert waiting[0].send(asked)[0] == "PERMISSION_DENIED"
    replace(access, table().replace(hashlib.sha256(TOKEN.encode()).hexdigest().encode(), b"0" * 64))
    forward(server)
    assert waiting[1].send(asked)[0] == "UNAUTHENTICATED"


def test_a_token_that_expires_while_a_call_is_being_sent_does_not_count(tmp_path, files, issuer):
    access = tmp_path / "access.toml"
    access.write_bytes(table())
    (tmp_path / "keys.pem").write_bytes(issuer.public_pem)
    settings = {
        **files.settings(),
        "access": access,
        "jwt_keys": str(tmp_path / "keys.pem"),
        "jwt_audience": AUDIENCE,
        "jwt_leeway_seconds": 0,
    }
    end = int(time.time()) + 3
    with (
        serving(tmp_path / "data", **settings) as server,
        tls_channel(server, files.ca) as stubs,
    ):
        later = Later(stubs.channel, GET, bearer(issuer.token(exp=end)))
        time.sleep(max(0.0, end - time.time()) + 0.1)
        assert later.send(runs_pb2.GetRunRequest(name="r").SerializeToString())[0] == "UNAUTHENTICATED"


def test_requests_without_a_message_do_not_keep_a_stream_open_that_never_joins(local, monkeypatch):
    _, channel, _ = local
    monkeypatch.setattr(guarded, "_FIRST_SECONDS", 1.0)
    stop = threading.Event()

    def nothings():
        while not stop.wait(0.2):
            yield trainer_pb2.TrainRequest().SerializeToString()

    ask: Any = channel.stream_stream("/steelyard.v1.TrainerService/Train")
    code, text = refusal(ask, nothings(), metadata=bearer(TOKEN), timeout=15)
    stop.set()
    assert (code, "expected a message within" in text) == ("INVALID_ARGUMENT", True)


def test_whoever_watches_health_takes_no_place_of_those_who_ask(local, eventually):
    """Anybody may watch, without credentials: a probe that was refused for that would end the server."""
    server, channel, _ = local
    watch: Any = channel.unary_stream(HEALTH + "Watch")
    watching = list[Any]()
    with contextlib.ExitStack() as connections:
        # A connection carries no more calls than max_concurrent_streams.
        while len(watching) < guard._HEALTH_CALLS:
            other = grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
            one: Any = connections.enter_context(other).unary_stream(HEALTH + "Watch")
            watching += [one(b"", timeout=60) for _ in range(guard._HEALTH_CALLS // 4)]
        eventually(lambda: server.guard._watchers.inside == guard._HEALTH_CALLS)
        assert refusal(watch, b"")[0] == "RESOURCE_EXHAUSTED"
        check: Any = channel.unary_unary(HEALTH + "Check")
        assert check(b"", timeout=20) == b"\x08\x01"
        for call in watching:
            call.cancel()
        eventually(lambda: server.guard._watchers.inside == 0)


def test_a_stream_that_was_let_in_by_a_file_that_was_changed_meanwhile_is_looked_at(local, eventually):
    """Between the look at the file that let it in and the first look after it: the change counts all the same."""
    server, channel, access = local
    root = channel.unary_unary("/steelyard.v1.DatasetService/CreateDataset")
    root(datasets_pb2.CreateDatasetRequest(name="d", size=9).SerializeToString(), metadata=bearer(ROOT))
    policy = runs_pb2.Policy()
    policy.draw.update({"method": "shuffle"})
    spec = runs_pb2.RunSpec(name="r", dataset="d", batch_size=3, policy=policy)
    channel.unary_unary("/steelyard.v1.RunService/CreateRun")(
        runs_pb2.CreateRunRequest(spec=spec).SerializeToString(), metadata=bearer(ROOT)
    )
    gatekeeper = server.guard._gatekeeper
    identify = gatekeeper.identify

    async def slowly(method, context):
        found = await identify(method, context)
        if method.endswith("Train"):
            replace(access, table('["read"]'))
            forward(server)
        return found

    gatekeeper.identify = slowly

    def requests():
        join = trainer_pb2.Join(run="r", world_size=1, attempt="a", session="s", credit=1)
        message = trainer_pb2.TrainerMessage(join=join)
        yield trainer_pb2.TrainRequest(messages=[message]).SerializeToString()
        time.sleep(15)

    train: Any = channel.stream_stream("/steelyard.v1.TrainerService/Train")
    code, text = refusal(train, requests(), metadata=bearer(TOKEN), timeout=10)
    assert (code, "it is not granted" in text) == ("PERMISSION_DENIED", True)


def test_a_server_that_stops_leaves_no_task_behind(tmp_path, files, monkeypatch):
    """Streams that are open, and a call that its client gave up, are over when the server is."""
    access = tmp_path / "access.toml"
    access.write_bytes(table())
    go_on = threading.Event()
    with (
        serving(tmp_path / "data", **files.settings(), access=access) as server,
        tls_channel(server, files.ca, token=ROOT) as stubs,
    ):
        monkeypatch.setattr(type(server._catalog), "delete_run", lambda catalog, name: go_on.wait(20))
        streams = [Trainer(stubs) for _ in range(4)]
        watch: Any = stubs.channel.unary_stream(HEALTH + "Watch")
        next(watch(b"", timeout=60))
        about = server_pb2_grpc.ServerServiceStub(stubs.channel).GetServer(server_pb2.GetServerRequest())
        once = (("x-request-id", "given-up"), ("x-steelyard-instance", about.instance))
        code, _ = refusal(stubs.runs.DeleteRun, runs_pb2.DeleteRunRequest(name="r"), metadata=once, timeout=1)
        assert code == "DEADLINE_EXCEEDED"
        while len(server.guard._open) < 4:
            time.sleep(0.01)
        server.stop()
        go_on.set()
        left = asyncio.all_tasks(server._loop)
        for one in streams:
            one.end()
    assert not left


QUOTA = b'quota = { bytes_per_second = "16KiB" }\n'
BATCH = 4000
"""Of some 8 KiB on the wire."""


@pytest.fixture
def metered(local):
    """A run with large batches, at a server whose trainer has a quota of 16 KiB a second; the run is another's, too."""
    server, channel, access = local
    create = channel.unary_unary("/steelyard.v1.DatasetService/CreateDataset")
    dataset = datasets_pb2.CreateDatasetRequest(name="d", size=2 * BATCH)
    create(dataset.SerializeToString(), metadata=bearer(ROOT))
    policy = runs_pb2.Policy()
    policy.draw.update({"method": "shuffle"})
    spec = runs_pb2.RunSpec(name="r", dataset="d", batch_size=BATCH, policy=policy)
    spec.staleness.steps = 100
    create = channel.unary_unary("/steelyard.v1.RunService/CreateRun")
    create(runs_pb2.CreateRunRequest(spec=spec).SerializeToString(), metadata=bearer(ROOT))
    replace(access, table('["read", "draw", "report"]') + QUOTA)
    forward(server)
    return server, channel


def drawn(channel, batches, token):
    """Asks for so many batches, each when the one before has come: the sizes of the answers, and the seconds."""
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    join = trainer_pb2.Join(run="r", world_size=1, attempt="a", session=token, credit=1)
    asked.put(trainer_pb2.TrainerMessage(join=join))
    train: Any = channel.stream_stream(
        "/steelyard.v1.TrainerService/Train",
        request_serializer=lambda one: trainer_pb2.TrainRequest(messages=[one]).SerializeToString(),
        response_deserializer=trainer_pb2.TrainResponse.FromString,
    )
    came, sizes, begin = 0, list[int](), time.monotonic()
    for answer in train(iter(asked.get, None), metadata=bearer(token), timeout=60):
        sizes.append(answer.ByteSize())
        batches_here = sum(one.HasField("batch") for one in answer.messages)
        came += batches_here
        if came < batches:
            for _ in range(batches_here):
                asked.put(trainer_pb2.TrainerMessage(credit=trainer_pb2.Credit(batches=1)))
        elif batches_here:
            asked.put(None)
    return sizes, time.monotonic() - begin


def assert_paced(sizes, seconds):
    """A second's worth is there at the begin, and the last answer is waited for by nobody."""
    assert len(sizes) >= 5
    assert sum(sizes[:-1]) <= 16384 * (seconds + 1)
    assert sum(sizes) > 3 * 16384


def test_a_stream_of_a_trainer_is_read_no_faster_than_its_quota(metered):
    _, channel = metered
    assert_paced(*drawn(channel, 7, TOKEN))


def test_events_are_sent_no_faster_than_the_quota_of_who_reads_them(metered, monkeypatch):
    _, channel = metered
    drawn(channel, 9, ROOT)
    monkeypatch.setattr(convert_events, "responses", partial(convert_events.responses, limit=4096))
    events: Any = channel.unary_stream("/steelyard.v1.EventService/StreamEvents")
    question, begin = events_pb2.StreamEventsRequest(name="r").SerializeToString(), time.monotonic()
    sizes = [len(one) for one in events(question, metadata=bearer(TOKEN), timeout=60)]
    assert_paced(sizes, time.monotonic() - begin)
