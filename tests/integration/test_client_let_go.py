"""A server that lets go of a call before it looks at it, as gRPC's does where too many wait: CANCELLED by nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

import steelyard
from steelyard.v1 import datasets_pb2, datasets_pb2_grpc, runs_pb2, runs_pb2_grpc, server_pb2, server_pb2_grpc


class Reluctant(
    datasets_pb2_grpc.DatasetServiceServicer,
    runs_pb2_grpc.RunServiceServicer,
    server_pb2_grpc.ServerServiceServicer,
):
    """Lets go of the first `refusals` calls of each kind. `asked`: the ids of all that came."""

    server: grpc.Server

    def __init__(self, refusals: int, capabilities: tuple[str, ...]) -> None:
        self._left: dict[str, int] = {}
        self._refusals, self._capabilities = refusals, capabilities
        self.asked: list[str] = []
        self._later = (grpc.StatusCode.OK, 10**9)

    def take_back(self, code: grpc.StatusCode, *, after: int) -> None:
        """From the call after that many on, answers with this code, and that it may be asked for again."""
        self._later = (code, after)

    def _refuse(self, name: str, context: Any) -> None:
        code, after = self._later
        if len(self.asked) >= after:
            context.set_trailing_metadata((("x-request-id", "r"), ("grpc-retry-pushback-ms", "50")))
            context.abort(code, "not now")
        left = self._left.setdefault(name, self._refusals)
        self.asked += [value for key, value in context.invocation_metadata() if key == "x-request-id"]
        if left:
            self._left[name] -= 1
            context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")

    def GetServer(self, request: Any, context: Any) -> Any:
        return server_pb2.GetServerResponse(version="1", instance="i", capabilities=self._capabilities)

    def ListRuns(self, request: Any, context: Any) -> Any:
        self._refuse("ListRuns", context)
        return runs_pb2.ListRunsResponse()

    def DeleteDataset(self, request: Any, context: Any) -> Any:
        self._refuse("DeleteDataset", context)
        return datasets_pb2.DeleteDatasetResponse()


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Reluctant, steelyard.Client]]]:
    servers: list[grpc.Server] = []

    def start(
        refusals: int, *capabilities: str, timeout: float = 20, port: int = 0
    ) -> tuple[Reluctant, steelyard.Client]:
        servicer = Reluctant(refusals, capabilities)  # type: ignore[abstract]
        server = servicer.server = grpc.server(ThreadPoolExecutor(2))
        servers.append(server)
        datasets_pb2_grpc.add_DatasetServiceServicer_to_server(servicer, server)
        runs_pb2_grpc.add_RunServiceServicer_to_server(servicer, server)
        server_pb2_grpc.add_ServerServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        return servicer, steelyard.connect(f"127.0.0.1:{port}", timeout=timeout)

    yield start
    for server in servers:
        server.stop(None)


def test_what_may_be_asked_for_twice_is_asked_for_again(serve):
    # More often than gRPC itself asks again, which it does four times.
    servicer, client = serve(7)
    assert client.list_runs() == []
    assert len(servicer.asked) == 8
    assert len(set(servicer.asked)) == 1


def test_what_counts_is_asked_for_again_of_a_server_that_does_it_once(serve):
    servicer, client = serve(3, "once")
    client.delete_dataset("d")
    assert len(servicer.asked) == 4
    assert len(set(servicer.asked)) == 1


def test_what_counts_is_asked_for_once_of_a_server_that_would_do_it_twice(serve):
    servicer, client = serve(1)
    with pytest.raises(steelyard.Unavailable, match="CANCELLED.*let go of the call"):
        client.delete_dataset("d")
    assert len(servicer.asked) == 1


def test_a_server_that_never_takes_it_is_an_error_at_the_deadline(serve):
    _, client = serve(10**6, timeout=1.5)
    with pytest.raises(steelyard.DeadlineExceeded, match="let go of the call|is overloaded"):
        client.list_runs()


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "PERMISSION_DENIED"])
def test_who_may_not_ask_again_is_told_that_it_may_have_been_done(serve, code, monkeypatch):
    monkeypatch.setattr("steelyard.transport._ONCE_SECONDS", 1.0)
    servicer, client = serve(1, "once", timeout=60)
    servicer.take_back(grpc.StatusCode[code], after=1)
    began = time.monotonic()
    with pytest.raises(
        steelyard.SteelyardError, match="may have been done or not; asked again:.*not now"
    ) as told:
        client.delete_dataset("d")
    assert told.value.code == code
    assert time.monotonic() - began < 10


def test_what_counts_is_not_sent_again_when_the_server_may_have_forgotten_it(serve, monkeypatch):
    """The client's timeout may be longer than the server remembers."""
    monkeypatch.setattr("steelyard.transport._ONCE_SECONDS", 1.0)
    servicer, client = serve(1, "once", timeout=20)
    stopped = threading.Event()

    def stop() -> None:
        servicer.server.stop(None).wait()
        stopped.set()

    def away(name: str, context: Any) -> None:
        servicer.asked.append(name)
        threading.Thread(target=stop).start()
        stopped.wait(10)

    monkeypatch.setattr(servicer, "_refuse", away)
    port = int(client.address.rpartition(":")[2])
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.delete_dataset, "d")
        assert stopped.wait(10)
        time.sleep(2.0)  # for longer than it may be asked for again
        later, _ = serve(0, "once", port=port)
        with pytest.raises(
            steelyard.SteelyardError, match=r"Socket closed|CANCELLED|let go|may have been done"
        ):
            asking.result(30)
    assert (len(servicer.asked), later.asked) == (1, [])
