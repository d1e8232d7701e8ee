"""A client and a server of which one is a version older, and what neither has heard of."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

import steelyard
from steelyard import wire
from steelyard.errors import from_rpc_error
from steelyard.testing import ServerProcess
from steelyard.v1 import arrays_pb2, datasets_pb2, runs_pb2, trainer_pb2

LIFE = Path(__file__).with_name("life.py")
NEW = dict(os.environ)


@contextlib.contextmanager
def on_path(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes that begin here are of that version."""
    with monkeypatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        yield


def live(client: dict[str, str], address: str, part: str) -> Any:
    command = [sys.executable, str(LIFE), address, part]
    ran = subprocess.run(command, env=client, capture_output=True, text=True, timeout=110, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


def lives(
    folder: Path, clients: list[dict[str, str]], servers: list[dict[str, str]], patch: pytest.MonkeyPatch
) -> list[Any]:
    """Both parts of a life, the server killed between them, each by its own versions."""
    process = ServerProcess(folder)
    seen = []
    for client, server, part in zip(clients, servers, ("begin", "resume"), strict=True):
        with on_path(server, patch):
            process.start()
        try:
            seen.append(live(client, process.address, part))
        finally:
            process.kill()
    return seen


@pytest.fixture(scope="module")
def of_today(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        return lives(tmp_path_factory.mktemp("today"), [NEW, NEW], [NEW, NEW], patch)


def test_the_versions_are_what_they_should_be(old):
    command = [sys.executable, "-c", "from importlib.metadata import version; print(version('steelyard'))"]
    versions = [
        subprocess.check_output(command, env=one, text=True, timeout=60).strip() for one in (old, NEW)
    ]
    assert versions[0] != versions[1]
    # Imports, too, are of that version.
    command = [sys.executable, "-c", "import steelyard; print(steelyard.__file__)"]
    where = subprocess.check_output(command, env=old, text=True, timeout=60)
    assert where.startswith(old["PYTHONPATH"])


def test_an_old_client_gets_from_a_new_server_what_a_new_one_gets(old, of_today, tmp_path, monkeypatch):
    assert lives(tmp_path, [old, old], [NEW, NEW], monkeypatch) == of_today


def test_a_new_client_gets_from_an_old_server_what_it_gets_from_a_new_one(
    old, of_today, tmp_path, monkeypatch
):
    assert lives(tmp_path, [NEW, NEW], [old, old], monkeypatch) == of_today


def test_a_life_goes_on_when_the_server_and_then_its_client_are_upgraded(
    old, of_today, tmp_path, monkeypatch
):
    assert lives(tmp_path, [old, NEW], [old, NEW], monkeypatch) == of_today


def test_what_an_old_server_does_not_have_is_refused_clearly(old, tmp_path, monkeypatch):
    process = ServerProcess(tmp_path)
    with on_path(old, monkeypatch):
        process.start()
    try:
        with grpc.insecure_channel(process.address) as channel:
            for method in ("/steelyard.v1.ServerService/GetServer", "/steelyard.v1.RunService/Levitate"):
                ask: Any = channel.unary_unary(method)
                with pytest.raises(grpc.RpcError) as failed:
                    ask(b"", timeout=20)
                assert isinstance(from_rpc_error(failed.value), steelyard.Unimplemented)
    finally:
        process.kill()


def unheard_of(message: Message) -> Any:
    """The message with fields that no server of today knows: text, a number, and a message of both."""
    more = b"\xfa\x3e\x05later" + b"\xf8\x3e\x2a" + b"\xf2\x3e\x02\x08\x01"
    changed = type(message)()
    changed.ParseFromString(message.SerializeToString() + more)
    return changed


def test_a_client_of_tomorrow_is_served_as_one_of_today(tmp_path):
    """Fields that this server has never heard of, in every request, and in every message of a stream."""
    with steelyard.testing.server(tmp_path) as client, grpc.insecure_channel(client.address) as channel:

        def call(method: str, request: Message, answer: Any) -> Any:
            ask: Any = channel.unary_unary(
                f"/steelyard.v1.{method}",
                request_serializer=lambda one: one.SerializeToString(),
                response_deserializer=answer.FromString,
            )
            return ask(unheard_of(request), timeout=20)

        call(
            "DatasetService/CreateDataset",
            datasets_pb2.CreateDatasetRequest(name="d", size=40),
            datasets_pb2.CreateDatasetResponse,
        )
        spec = runs_pb2.RunSpec(name="r", dataset="d", batch_size=8, policy=runs_pb2.Policy())
        spec.policy.draw.update({"method": "shuffle"})
        spec.staleness.steps = 2
        spec.report_timeout_seconds, spec.retain_steps = 600, 100
        call(
            "RunService/CreateRun",
            runs_pb2.CreateRunRequest(spec=unheard_of(spec)),
            runs_pb2.CreateRunResponse,
        )
        train: Any = channel.stream_stream(
            "/steelyard.v1.TrainerService/Train",
            request_serializer=lambda one: one.SerializeToString(),
            response_deserializer=trainer_pb2.TrainResponse.FromString,
        )

        def asks() -> Iterator[Any]:
            join = trainer_pb2.Join(run="r", world_size=1, attempt="a", session="s", credit=1)
            yield request(join=unheard_of(join))
            batch = next(one.batch for one in answers if one.HasField("batch"))
            report = trainer_pb2.Report(step=batch.step, digest=batch.digest)
            report.signals.append(
                arrays_pb2.Signal(name="loss", values=wire.pack(np.ones(batch.batch_size), np.float32))
            )
            yield request(report=unheard_of(report))
            next(one for one in answers if one.HasField("acknowledgement"))
            yield request(leave=unheard_of(trainer_pb2.Leave()))

        def request(**message: Any) -> Any:
            one = unheard_of(trainer_pb2.TrainerMessage(**message))
            return unheard_of(trainer_pb2.TrainRequest(messages=[one]))

        taken: queue.SimpleQueue[Any] = queue.SimpleQueue()
        answers = iter(taken.get, None)
        for response in train(asks(), timeout=30):
            for message in response.messages:
                taken.put(message)
        assert client.run("r").stats().reported_losses == 8
