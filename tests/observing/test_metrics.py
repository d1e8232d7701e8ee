"""What is exported is what is described; calls are counted as they ended; no scrape waits for the disk."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import steelyard
from steelyard.v1 import datasets_pb2, runs_pb2
from steelyard_server.history.ops import Put, Table
from steelyard_server.observing import names
from steelyard_server.observing.names import BY_NAME, Name

ROOT = Path(__file__).resolve().parents[2]


def exported(text: str) -> dict[str, Name]:
    """Families as they are scraped, by name; labels in the order that the text has them in."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))
    return {
        name: Name(name, kind, helps[name].replace("\\\\", "\\"))
        for name, kind in kinds.items()
        if not name.startswith("process_")
    }


def test_a_server_exports_what_is_described_and_nothing_else(watched):
    server = watched()
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    scored = {"method": "scored", "score": "last_loss"}
    run = client.create_run("r", dataset="d", batch_size=8, draw=scored)
    with run.join(timeout=30) as session:
        batch = session.next()
        session.report(batch, batch.ids.astype("float32"))
        session.flush(30)
    server.server.facts.backup_at = 1e9
    server.server.facts.restore_verified_at = 2e9
    server.server._metrics.auth_failures.labels("expired").inc()
    server.server._metrics.quota_refused.labels("someone", "bytes").inc()
    _, text = server.get("/metrics")
    found = exported(text)
    assert set(found) == set(BY_NAME)
    for name, one in BY_NAME.items():
        assert (found[name].kind, found[name].text) == (one.kind, one.text)
    scrape = server.scrape()
    sampled = {re.sub(r"_(bucket|sum|count)$", "", one.name) for one in scrape.samples}
    untold = {"steelyard_certificate_expiry_timestamp_seconds", "steelyard_file_not_reloaded"}
    assert {name for name, one in BY_NAME.items() if name not in sampled} <= untold
    for sample in scrape.samples:
        name = re.sub(r"_(bucket|sum|count)$", "", sample.name)
        if name in BY_NAME:
            assert set(sample.labels) - {"le"} == set(BY_NAME[name].labels), sample
    assert scrape.one("steelyard_backup_timestamp_seconds") == 1e9
    assert scrape.one("steelyard_restore_verified_timestamp_seconds") == 2e9


def test_what_is_said_to_be_there_always_is(watched):
    scrape = watched().scrape()
    told = {re.sub(r"_(bucket|sum|count)$", "", one.name) for one in scrape.samples}
    assert {name for name, one in BY_NAME.items() if one.always} <= told


def test_names_follow_the_conventions(watched):
    for one in BY_NAME.values():
        assert re.fullmatch(r"steelyard_[a-z_]+", one.name)
        assert (one.kind == "counter") == one.name.endswith("_total")
        assert not one.name.endswith(("_count", "_sum", "_bucket", "_created"))
        assert one.text.endswith(".")
        if one.kind == "histogram":
            assert one.name.endswith(("_seconds", "_steps"))
    assert (names.RPC_BUCKETS[0], names.RPC_BUCKETS[-1]) == (0.0005, 5.0)


def test_the_page_of_metrics_is_as_the_table_has_them():
    page = ROOT / "deploy" / "monitoring" / "METRICS.md"
    assert page.read_text(encoding="utf-8") == names.described(), "stale: run `make gen`"


def test_calls_are_counted_by_method_and_how_they_ended(watched, raw_of, eventually):
    server = watched()
    bare = raw_of(server.server.address)
    create = datasets_pb2.CreateDatasetRequest(name="d", size=50)
    bare.datasets.CreateDataset(create)
    for _ in range(3):
        with pytest.raises(grpc.RpcError):
            bare.runs.GetRun(runs_pb2.GetRunRequest(name="none"))
    with pytest.raises(grpc.RpcError):
        bare.runs.CreateRun(runs_pb2.CreateRunRequest())
    # A refusal is on its way before the call has ended.
    eventually(lambda: not any(server.scrape().all("steelyard_rpc_in_flight").values()))
    scrape = server.scrape()
    method = "/steelyard.v1.RunService/GetRun"
    assert scrape.all("steelyard_rpc_handled_total", method=method) == {("NOT_FOUND",): 3}
    handled = scrape.all("steelyard_rpc_handled_total")
    assert handled["INVALID_ARGUMENT", "/steelyard.v1.RunService/CreateRun"] == 1
    assert handled["OK", "/steelyard.v1.DatasetService/CreateDataset"] == 1
    assert scrape.one("steelyard_rpc_duration_seconds_count", method=method) == 3


def test_streams_are_counted_while_they_are_open(watched, raw_of, eventually):
    server = watched()
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    client.create_run("r", dataset="d", batch_size=8)
    trainers = [raw_of(server.server.address).trainer() for _ in range(3)]
    for rank, trainer in enumerate(trainers):
        trainer.join("r", rank=rank, world_size=3)
    # Who watches the health is no trainer.
    watching = health_pb2_grpc.HealthStub(trainers[0]._channel).Watch(health_pb2.HealthCheckRequest())
    next(watching)
    scrape = server.scrape()
    train = "/steelyard.v1.TrainerService/Train"
    assert scrape.one("steelyard_streams_open") == 3
    assert scrape.one("steelyard_rpc_in_flight", method=train) == 3
    assert scrape.one("steelyard_run_ranks", run="r") == 3
    trainers[0].send(leave={})
    assert trainers[0].end() is None
    trainers[1]._call.cancel()
    eventually(lambda: server.scrape().one("steelyard_streams_open") == 1)
    watching.cancel()
    ended = server.scrape().all("steelyard_rpc_handled_total", method=train)
    assert ended == {("OK",): 1, ("CANCELLED",): 1}
    assert not server.scrape().all("steelyard_rpc_duration_seconds_count", method=train)


def test_methods_that_nobody_has_are_one_series_however_many_are_tried(watched):
    server = watched()
    with grpc.insecure_channel(server.server.address) as channel:
        for number in range(20):
            call: Any = channel.unary_unary(f"/garbage.Service{number}/Method{number}")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=20)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    handled = server.scrape().all("steelyard_rpc_handled_total")
    assert handled == {("UNIMPLEMENTED", "unknown"): 20}
    assert "garbage" not in server.get("/metrics")[1]


def test_a_scrape_waits_for_no_disk(watched):
    """Not while the writer hangs in a commit, nor while the map is reopened."""
    server = watched()
    store = server.server._store
    release, held = threading.Event(), threading.Event()

    def hang(error: BaseException | None) -> None:
        held.set()
        release.wait(30)

    store.write([Put(Table.META, b"x", b"y")], hang)
    assert held.wait(10)
    try:
        store._gate._alone = True
        began = time.monotonic()
        scrape = server.scrape()
        assert time.monotonic() - began < 5.0
        assert scrape.one("steelyard_store_used_bytes") > 0
        assert scrape.one("steelyard_store_writer_busy_seconds") > 0
        assert scrape.one("steelyard_alive") == 1
    finally:
        store._gate._alone = False
        release.set()


def test_the_figures_of_the_store_are_those_of_its_disk(watched, tmp_path, eventually):
    server = watched(map_size_bytes=1 << 22, max_map_size_bytes=1 << 26)
    client = steelyard.connect(server.server.address)
    store, timed = server.server._store, "steelyard_store_commit_seconds_count"
    before, commits = server.scrape().one(timed), store.stats().commits
    for number in range(5):
        client.create_dataset(f"d{number}", 50)
    assert server.scrape().one(timed) - before == store.stats().commits - commits >= 5
    assert server.scrape().one("steelyard_store_map_bytes") == 1 << 22
    assert server.scrape().one("steelyard_store_map_limit_bytes") == 1 << 26
    used = store.stats().used_bytes
    eventually(lambda: server.scrape().one("steelyard_store_used_bytes") == used)
    assert used == (tmp_path / "data" / "data.mdb").stat().st_size
    assert (
        server.scrape().one("steelyard_disk_size_bytes")
        > server.scrape().one("steelyard_disk_free_bytes")
        > 0
    )
