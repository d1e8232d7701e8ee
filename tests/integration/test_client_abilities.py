"""What a client does at a server that lacks something: one of before GetServer, played by a gRPC server that shows its
schema, and one that is killed while it is asked for what counts."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection

import steelyard
from steelyard.testing import ServerProcess
from steelyard.v1 import runs_pb2, server_pb2

MIX = {"method": "temperature", "group": "domain"}


def schema(*, mix: bool) -> descriptor_pool.DescriptorPool:
    """That of a server with or without mixes."""
    pool = descriptor_pool.DescriptorPool()
    added = set[str]()

    def add(file: Any) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for one in file.dependencies:
            add(one)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        for message in proto.message_type:
            kept = [
                field for field in message.field if mix or (message.name, field.name) != ("Policy", "mix")
            ]
            del message.field[:]
            message.field.extend(kept)
        pool.Add(proto)  # type: ignore[no-untyped-call]

    add(runs_pb2.DESCRIPTOR)
    return pool


class Old:
    """Answers CreateRun as a server that passes over what it does not know, and counts that."""

    def __init__(self, *, mix: bool, shows: bool) -> None:
        self.created: list[str] = []
        self.capabilities: list[str] | None = None
        self._mix = mix
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        handlers = {
            "/steelyard.v1.RunService/CreateRun": self._create,
            "/steelyard.v1.ServerService/GetServer": self._about,
        }
        self._server.add_generic_rpc_handlers((Handlers(handlers),))
        if shows:
            pool = schema(mix=mix)
            reflection.enable_server_reflection((reflection.SERVICE_NAME,), self._server, pool)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None)

    def _create(self, data: bytes, context: Any) -> bytes:
        spec = runs_pb2.CreateRunRequest.FromString(data).spec
        self.created.append(spec.name)
        if not self._mix:
            spec.policy.ClearField("mix")
        return runs_pb2.CreateRunResponse(run=runs_pb2.Run(spec=spec)).SerializeToString()

    def _about(self, data: bytes, context: Any) -> bytes:
        if self.capabilities is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        return server_pb2.GetServerResponse(capabilities=self.capabilities).SerializeToString()


class Handlers(grpc.GenericRpcHandler):
    def __init__(self, methods: dict[str, Any]) -> None:
        self._methods = methods

    def service(self, details: Any) -> Any:
        method = self._methods.get(details.method)
        return None if method is None else grpc.unary_unary_rpc_method_handler(method)


@pytest.fixture
def old(request: pytest.FixtureRequest) -> Iterator[Old]:
    one = Old(**request.param)
    yield one
    one.stop()


@pytest.mark.parametrize("old", [{"mix": False, "shows": True}], indirect=True)
def test_a_mix_is_refused_by_the_client_before_a_server_that_knows_none_makes_the_run(old: Old) -> None:
    with steelyard.connect(old.address) as client:
        for _ in range(2):
            with pytest.raises(steelyard.FailedPrecondition, match=r"knows no mix.* Nothing was done"):
                client.create_run("r", dataset="d", batch_size=4, mix=MIX)
        assert old.created == []
        client.create_run("plain", dataset="d", batch_size=4)
        assert old.created == ["plain"]
        # Upgraded under a client that has asked before.
        old.capabilities, old._mix = ["mix"], True
        client.create_run("mixed", dataset="d", batch_size=4, mix=MIX)
        assert old.created == ["plain", "mixed"]


@pytest.mark.parametrize("old", [{"mix": True, "shows": True}], indirect=True)
def test_a_mix_is_asked_for_of_a_server_of_before_getserver_that_knows_mixes(old: Old) -> None:
    with steelyard.connect(old.address) as client:
        client.create_run("r", dataset="d", batch_size=4, mix=MIX)
        assert old.created == ["r"]


@pytest.mark.parametrize("old", [{"mix": False, "shows": False}], indirect=True)
def test_what_a_server_did_that_shows_nothing_of_itself_is_looked_at_afterwards(old: Old) -> None:
    with (
        steelyard.connect(old.address) as client,
        pytest.raises(steelyard.FailedPrecondition, match="got a run that draws without groups"),
    ):
        client.create_run("r", dataset="d", batch_size=4, mix=MIX)
    assert old.created == ["r"]


def test_a_kill_in_the_middle_of_what_counts_is_told_as_an_unknown_outcome_and_nothing_is_doubled(
    tmp_path: Any,
) -> None:
    with ServerProcess(tmp_path, kernels="numpy") as process, process.client(timeout=60) as client:
        client.create_dataset("d", 1000)
        run = client.create_run("r", dataset="d", batch_size=4)
        told: dict[int, str] = {}

        def observe(number: int) -> None:
            try:
                run.observe([number], [1.0])
                told[number] = "done"
            except steelyard.Unavailable as error:
                told[number] = str(error)

        observe(0)
        os.kill(process.pid, signal.SIGSTOP)  # whatever is asked for now is under way when the kill comes
        asking = [threading.Thread(target=observe, args=(number,), daemon=True) for number in range(1, 9)]
        for one in asking:
            one.start()
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.002)
        process.kill()
        process.start()
        for one in asking:
            one.join(60)
        os.kill(process.pid, signal.SIGSTOP)
        last = threading.Thread(target=observe, args=(9,), daemon=True)
        last.start()
        time.sleep(0.3)
        process.kill()
        process.start()
        last.join(60)
        assert sorted(told) == list(range(10))
        assert "was started anew since it was first asked" in told[9]
        assert "does not know whether it was done" in told[9]
        seen = [int(one.ids[0]) for one in run.events() if isinstance(one, steelyard.events.SignalsObserved)]
    assert len(seen) == len(set(seen))
    assert {number for number, words in told.items() if words == "done"} <= set(seen)
    assert all("does not know" in words for words in told.values() if words != "done")
