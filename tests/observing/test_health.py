"""Startup, readiness and liveness, over HTTP, gRPC, and the port that serves nothing else."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from unittest import mock

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import steelyard
from steelyard.v1 import datasets_pb2, datasets_pb2_grpc
from steelyard_server import server as server_module
from steelyard_server.config import Settings
from steelyard_server.history.errors import StoreError
from steelyard_server.history.ops import Put, Table
from steelyard_server.server import Server
from steelyard_server.service import edge

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PROBES = ("steelyard.startup", "steelyard.readiness", "steelyard.liveness")


@pytest.fixture
def ask():
    """asks(address) gives the names that are asked for and their status."""
    with contextlib.ExitStack() as open_:
        stubs = {}

        def check(address, service):
            if address not in stubs:
                stubs[address] = health_pb2_grpc.HealthStub(
                    open_.enter_context(grpc.insecure_channel(address))
                )
            request = health_pb2.HealthCheckRequest(service=service)
            return stubs[address].Check(request, timeout=10).status

        yield check


def test_every_name_is_served_on_both_ports(watched, ask):
    server = watched(health="127.0.0.1:0").server
    for address in (server.address, server.health_address):
        for service in ("", *edge.SERVICES, *PROBES):
            assert ask(address, service) == SERVING, (address, service)
        with pytest.raises(grpc.RpcError) as unknown:
            ask(address, "steelyard.other")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def test_the_health_port_serves_nothing_but_health(watched):
    server = watched(health="127.0.0.1:0").server
    with grpc.insecure_channel(server.health_address) as channel:
        datasets = datasets_pb2_grpc.DatasetServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            datasets.ListDatasets(datasets_pb2.ListDatasetsRequest(), timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            list(
                reflection.ServerReflectionInfo(
                    iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10
                )
            )
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_health_port_may_be_on_any_address_and_http_only_where_it_is_said(tmp_path):
    Settings(data_dir=tmp_path, health="0.0.0.0:7080")
    with pytest.raises(ValueError, match="http_anywhere"):
        Settings(data_dir=tmp_path, http="0.0.0.0:9090")
    Settings(data_dir=tmp_path, http="0.0.0.0:9090", http_anywhere=True)
    with pytest.raises(ValueError, match="listen"):
        Settings(data_dir=tmp_path, listen="0.0.0.0:7077", http_anywhere=True)


def test_a_health_port_that_is_taken_is_an_oserror_that_names_it(watched, tmp_path):
    taken = watched(health="127.0.0.1:0").server.health_address
    second = Server(Settings(data_dir=tmp_path / "other", listen="127.0.0.1:0", health=taken))
    with pytest.raises(OSError, match=f"cannot listen on {taken}: address already in use"):
        second.start()


def test_probes_are_answered_while_the_catalog_is_loaded(tmp_path, ask, monkeypatch):
    loading, loaded = threading.Event(), threading.Event()
    catalog = server_module.Catalog

    def slow(*arguments):
        loading.set()
        assert loaded.wait(30)
        return catalog(*arguments)

    monkeypatch.setattr(server_module, "Catalog", slow)
    server = Server(
        Settings(
            data_dir=tmp_path, listen="127.0.0.1:0", http="127.0.0.1:0", health="127.0.0.1:0", kernels="numpy"
        )
    )
    starting = threading.Thread(target=server.start)
    starting.start()
    try:
        assert loading.wait(30)
        answers = [ask(server.health_address, name) for name in PROBES]
        assert answers == [NOT_SERVING, NOT_SERVING, SERVING]
        with pytest.raises(urllib.error.HTTPError) as unready:
            urllib.request.urlopen(f"http://{server.http_address}/readyz", timeout=10)
        assert unready.value.code == 503
        assert b"starting" in unready.value.read()
        unready.value.close()
    finally:
        loaded.set()
        starting.join(30)
    try:
        assert [ask(server.health_address, name) for name in PROBES] == [SERVING] * 3
    finally:
        server.stop()


def test_a_start_that_fails_leaves_no_port_behind(watched, tmp_path):
    watched()
    free = watched(data_dir=tmp_path / "other", health="127.0.0.1:0").server
    address = free.health_address
    free.stop()
    second = Server(Settings(data_dir=tmp_path / "data", listen="127.0.0.1:0", health=address))
    with pytest.raises(StoreError):
        second.start()
    third = watched(data_dir=tmp_path / "third", health=address).server
    assert third.health_address == address


def test_an_event_loop_that_is_stuck_is_noticed_and_one_that_goes_round_again_is_well(
    watched, ask, eventually
):
    server = watched(health="127.0.0.1:0", stuck_after_seconds=1.0)
    release = threading.Event()
    server.server._loop.call_soon_threadsafe(release.wait, 30)
    try:
        eventually(lambda: ask(server.server.health_address, "steelyard.liveness") == NOT_SERVING)
        status, why = server.get("/healthz")
        assert (status, "the event loop has not come round" in why) == (503, True)
        assert server.scrape().one("steelyard_alive") == 0
        assert server.scrape().one("steelyard_event_loop_lag_seconds") > 1.0
    finally:
        release.set()
    eventually(lambda: ask(server.server.health_address, "steelyard.liveness") == SERVING)
    assert server.get("/healthz") == (200, "OK\n")


def test_a_writer_that_is_stuck_is_noticed(watched, ask, eventually):
    server = watched(health="127.0.0.1:0", stuck_after_seconds=0.5)
    release = threading.Event()
    server.server._store.write([Put(Table.META, b"x", b"y")], lambda error: release.wait(30) and None)
    try:
        for address in (server.server.health_address, server.server.address):
            eventually(lambda at=address: ask(at, "steelyard.liveness") == NOT_SERVING)
        assert "the writer of the store has been at one commit" in server.get("/healthz")[1]
    finally:
        release.set()
    eventually(lambda: server.get("/healthz")[0] == 200)


def test_a_writer_that_has_died_is_noticed(watched, eventually, monkeypatch):
    server = watched()
    monkeypatch.setattr(server.server._store, "_serve", mock.Mock(side_effect=SystemError("planted")))
    with contextlib.suppress(StoreError):
        server.server._store.commit([Put(Table.META, b"x", b"y")])
    assert eventually(lambda: server.get("/healthz")) == (503, "the writer of the store has died\n")
    monkeypatch.undo()


def test_a_commit_that_fails_and_is_tried_again_makes_unready_and_not_dead(
    watched, ask, eventually, monkeypatch
):
    server = watched(health="127.0.0.1:0", stuck_after_seconds=2.0)
    store = server.server._store
    failing = threading.Event()
    failing.set()
    transact = store._transact

    def fail(*arguments):
        if failing.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return transact(*arguments)

    monkeypatch.setattr(store, "_transact", fail)
    with pytest.raises(StoreError):
        store.commit([Put(Table.META, b"x", b"y")])
    eventually(lambda: ask(server.server.health_address, "steelyard.readiness") == NOT_SERVING)
    status, why = server.get("/readyz")
    assert (status, "tried again" in why) == (503, True)
    # Longer than what would be stuck, which is long enough for a machine that is busy.
    until = time.monotonic() + 3.0
    while time.monotonic() < until:
        time.sleep(0.1)
        assert server.get("/healthz") == (200, "OK\n")
        assert ask(server.server.health_address, "steelyard.liveness") == SERVING
    assert server.scrape().one("steelyard_store_healthy") == 0
    assert eventually(lambda: server.scrape().one("steelyard_store_failures_total") > 1)
    failing.clear()
    eventually(lambda: server.get("/readyz") == (200, "OK\n"))
    eventually(lambda: ask(server.server.health_address, "steelyard.readiness") == SERVING)


def test_too_little_room_on_the_disk_makes_unready_and_not_dead(watched, ask):
    server = watched(health="127.0.0.1:0", disk_headroom_bytes=1 << 60)
    status, why = server.get("/readyz")
    assert status == 503
    assert "disk_headroom_bytes = 1152921504606846976" in why
    assert server.get("/healthz") == (200, "OK\n")
    answers = [ask(server.server.health_address, name) for name in PROBES]
    assert answers == [SERVING, NOT_SERVING, SERVING]
    # It serves on: what a readiness probe does with it is its owner's choice.
    assert steelyard.connect(server.server.address).list_datasets() == []


def test_who_watches_hears_that_it_drains_before_anything_is_refused(watched, monkeypatch):
    server = watched(health="127.0.0.1:0")
    heard = {}
    with (
        grpc.insecure_channel(server.server.health_address) as port,
        grpc.insecure_channel(server.server.address) as main,
    ):
        watches = {
            at: health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=name))
            for channel, at in ((port, "port"), (main, "main"))
            for name in ("steelyard.readiness",)
        }
        for at, watch in watches.items():
            assert next(watch).status == SERVING, at
        catalog = server.server._catalog
        close = catalog.close

        def told(deadline):
            for at, watch in watches.items():
                heard[at] = next(watch).status
            assert server.get("/readyz") == (503, "draining\n")
            assert server.get("/healthz") == (200, "OK\n")
            # Nothing is refused yet.
            assert steelyard.connect(server.server.address).list_datasets() == []
            return close(deadline)

        monkeypatch.setattr(catalog, "close", told)
        assert server.server.stop()
    assert heard == {"port": NOT_SERVING, "main": NOT_SERVING}


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_http_is_served_on_an_ipv6_address(watched):
    server = watched(http="[::1]:0")
    assert server.server.http_address.startswith("[::1]:")
    assert server.get("/readyz") == (200, "OK\n")


def test_who_opens_more_connections_than_http_takes_is_refused_and_those_after_are_served(
    watched, eventually, monkeypatch
):
    monkeypatch.setattr("steelyard_server.service.http._MOST_REQUESTS", 3)
    server = watched()
    host, _, port = server.server.http_address.rpartition(":")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            idle = stack.enter_context(socket.create_connection((host, int(port)), 20))
            idle.sendall(b"GET /readyz")
        last = stack.enter_context(socket.create_connection((host, int(port)), 20))
        assert last.recv(10) == b""

    def served():
        with contextlib.suppress(OSError, http.client.HTTPException):
            return server.get("/readyz")[0] == 200

    eventually(served)
