"""A server that ends connections by their age: nobody notices, and what counts counts once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

import steelyard
from steelyard import wire
from steelyard.arguments import pack_ids
from steelyard.v1 import arrays_pb2, runs_pb2, runs_pb2_grpc, server_pb2, server_pb2_grpc
from steelyard_server.config import Settings
from steelyard_server.history.errors import StoreError
from steelyard_server.security.caller import Caller, caller
from steelyard_server.security.grants import EVERYTHING
from steelyard_server.server import Server
from steelyard_server.service.once import Once, Outcome

SIZE = 300_000


@pytest.fixture
def aging(tmp_path) -> Iterator[Callable[..., Server]]:
    """Starts a server whose connections live that many seconds, and are cut after so many more."""
    started = list[Server]()

    def start(age: float, grace: float, **settings: Any) -> Server:
        given = Settings(
            data_dir=tmp_path / "data",
            listen="127.0.0.1:0",
            kernels="numpy",
            max_connection_age_seconds=age,
            max_connection_age_grace_seconds=grace,
            **settings,
        )
        started.append(Server(given))
        started[0].start()
        return started[0]

    yield start
    started[0].stop(1.0)


def rank(run: steelyard.Run, number: int, steps: int, ends: list[int], errors: list[Exception]) -> None:
    try:
        with run.join(number, 2, attempt="one", timeout=60) as session:
            for _ in range(steps):
                batch = session.next()
                session.report(batch, np.full(len(batch), batch.step + number / 4))
                if number == 0:
                    run.stats()
            ends[number] = session.step
    except Exception as error:
        errors.append(error)


def test_trainers_calls_and_readers_of_events_outlive_many_connections(aging):
    """Each connection lives 0.2 s: reports are sent again, and none counts twice or is missing."""
    client = steelyard.connect(aging(0.2, 0.05).address, timeout=60)
    client.create_dataset("d", 500)
    run = client.create_run(
        "r", dataset="d", batch_size=16, staleness=0, draw={"method": "scored", "score": "last_loss"}
    )
    steps, ends, errors = 200, [0, 0], list[Exception]()
    ranks = [
        threading.Thread(target=rank, args=(run, number, steps, ends, errors), daemon=True)
        for number in range(2)
    ]
    for thread in ranks:
        thread.start()
    seen = [event.record for event in run.events()]
    while any(thread.is_alive() for thread in ranks):
        assert seen == list(range(len(seen)))
        seen = [event.record for event in run.events()]
    assert not errors
    assert ends == [steps, steps]
    reports = [one for one in run.events() if isinstance(one, steelyard.events.LossesReported)]
    assert sorted((one.step, one.offset) for one in reports) == [
        (step, offset) for step in range(steps) for offset in (0, 8)
    ]
    assert all((one.signals["loss"] == one.step + one.offset / 32).all() for one in reports)


def test_calls_that_wait_when_their_connection_ends_are_answered_and_those_that_count_count_once(aging):
    """120 calls before a server with one thread, whose connections live 0.3 s with 0.05 s of grace."""
    client = steelyard.connect(aging(0.3, 0.05, call_threads=1).address, timeout=60)
    client.create_dataset("d", SIZE)
    run = client.create_run("r", dataset="d", batch_size=8, draw={"method": "scored", "score": "last_loss"})
    errors: list[Exception] = []

    def call(number: int) -> None:
        try:
            if number % 2:
                assert len(run.column("last_loss")) == SIZE
            else:
                run.observe([number], [float(number)])
                client.create_dataset(f"d{number}", 5)
                client.delete_dataset(f"d{number}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    observed = [int(one.ids[0]) for one in run.events() if isinstance(one, steelyard.events.SignalsObserved)]
    assert sorted(observed) == list(range(0, 120, 2))
    assert [one.name for one in client.list_datasets()] == ["d"]


def test_what_is_asked_for_twice_by_one_id_is_done_once_in_one_life_of_the_server(aging):
    server = aging(60, 1)
    client = steelyard.connect(server.address)
    client.create_dataset("d", 20)
    run = client.create_run("r", dataset="d", batch_size=4)
    with grpc.insecure_channel(server.address) as channel:
        about = server_pb2_grpc.ServerServiceStub(channel).GetServer(
            server_pb2.GetServerRequest(), timeout=20
        )
        assert "once" in about.capabilities
        stub = runs_pb2_grpc.RunServiceStub(channel)

        def observe(name: str, value: float, instance: str = about.instance) -> str:
            request = runs_pb2.ObserveRequest(name="r", ids=pack_ids(np.array([1])))
            request.signals.append(arrays_pb2.Signal(name="loss", values=wire.pack([value], np.float32)))
            metadata = (("x-request-id", name), ("x-steelyard-instance", instance))
            try:
                stub.Observe(request, timeout=20, metadata=metadata)
            except grpc.RpcError as error:
                return f"{error.code().name}: {error.details()}"  # type: ignore[attr-defined]
            return "done"

        assert [observe("a", 1.0), observe("a", 1.0), observe("b", 1.0)] == ["done"] * 3
        assert observe("a", 2.0).startswith("INVALID_ARGUMENT: request id 'a': expected the request")
        assert observe("c", 1.0, "another").startswith("ABORTED: the server was started anew")
    assert sum(isinstance(one, steelyard.events.SignalsObserved) for one in run.events()) == 2


def test_a_client_that_knew_the_server_before_it_was_started_anew_goes_on(tmp_path):
    with steelyard.testing.ServerProcess(tmp_path) as process:
        client = process.client()
        client.create_dataset("one", 10)
        process.kill()
        process.start()
        client.create_dataset("two", 10)
        assert [one.name for one in client.list_datasets()] == ["one", "two"]


def test_only_what_counts_is_remembered_and_by_whom_it_was_asked():
    """Answers that may be large are not kept, errors keep nothing of their requests, and what was not done is done when
    it is asked for again."""
    once = Once("life", frozenset({"Counts"}))
    metadata = {"x-request-id": "a", "x-steelyard-instance": "life"}
    done: list[str] = []

    async def asks() -> list[Any]:
        request = runs_pb2.DeleteRunRequest(name="r")

        async def work(who: str, nothing_done: bool = False) -> Outcome:
            done.append(who)
            return Outcome(who, nothing_done=nothing_done)

        async def ask(method: str, who: str, nothing_done: bool = False) -> Any:
            caller.set(Caller(who, EVERYTHING))
            outcome = await once.do(metadata, method, request, lambda: work(who, nothing_done))
            return outcome.answer

        return [
            await ask("Counts", "ada", True),  # refused for the moment
            await ask("Counts", "ada"),
            await ask("Counts", "ada"),
            await ask("Counts", "eve"),  # by an id of another's, that she guessed
            *[await ask("Reads", "ada") for _ in range(3)],
        ]

    asyncio.run(asks())
    assert done == ["ada", "ada", "eve", "ada", "ada", "ada"]
    assert len(once._asked) == 2


def test_a_run_that_was_too_busy_to_be_deleted_is_deleted_when_that_is_asked_for_again(aging, monkeypatch):
    server = aging(60, 1)
    client = steelyard.connect(server.address)
    client.create_dataset("d", 20)
    client.create_run("r", dataset="d", batch_size=4).stats()
    run = server._catalog.run("r")  # type: ignore[union-attr]
    busy = [False, False]
    remove = type(run).remove
    monkeypatch.setattr(type(run), "remove", lambda one: busy.pop() if busy else remove(one))
    client.delete_run("r")
    assert client.list_runs() == []
    assert not busy


def test_what_the_server_answers_to_a_call_that_counts_is_told_at_once(aging, monkeypatch):
    """It does the call once: asked again it would only repeat its answer, until the client's time is over."""
    server = aging(60, 1)
    client = steelyard.connect(server.address)
    asked = list[str]()
    do = Once.do

    def counted(*given: Any) -> Any:
        asked.append(given[2])
        return do(*given)

    def fails(*_: Any, **__: Any) -> None:
        raise StoreError("the commit failed: it may have been done or not")

    monkeypatch.setattr(Once, "do", counted)
    with monkeypatch.context() as broken:
        broken.setattr(server._catalog, "create_dataset", fails)
        with pytest.raises(steelyard.Unavailable, match="the commit failed"):
            client.create_dataset("d", 20)
    assert len([name for name in asked if name.endswith("CreateDataset")]) == 1
    client.create_dataset("d", 20)
