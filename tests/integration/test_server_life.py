"""The daemon's life: start, health, drain, refusal, damage, full disks, retention."""

import contextlib
import logging
import os
import resource
import threading
import time
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import steelyard
from steelyard.testing import ServerProcess, server
from steelyard.v1 import trainer_pb2
from steelyard_server.config import Settings
from steelyard_server.core.events import StepClosed
from steelyard_server.history.checkpoints import Checkpoints
from steelyard_server.history.journal import Journal
from steelyard_server.history.ops import Put, Table, u64
from steelyard_server.history.store import Store
from steelyard_server.server import Server
from steelyard_server.service.edge import SERVICES

SCORED = {"method": "scored", "score": "last_loss", "transform": "power", "alpha": 1.0, "floor": 0.1}


def loss(ids, step):
    return np.asarray(1.0 + ids % 7 + step / 8, np.float32)


def train(run, steps, **join):
    with run.join(**{"prefetch": 2, "timeout": 30, **join}) as session:
        served = []
        for _ in range(steps):
            batch = session.next()
            session.report(batch, loss(batch.ids, batch.step))
            served.append(batch.ids.tolist())
        session.flush(30)
    return served


def status(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def damage(directory, step):
    """Flips a bit of what the first run made keeps of `step`; the number of the record."""
    store = Store.open(directory)
    seq = Journal(store, 2).seq_of_step(step)
    assert seq is not None
    value = bytearray(store.get(Table.JOURNAL, u64(2, seq)) or b"")
    value[-3] ^= 4
    store.commit([Put(Table.JOURNAL, u64(2, seq), bytes(value))])
    store.close()
    return seq


@pytest.fixture
def instance(tmp_path):
    running = Server(
        Settings(data_dir=tmp_path / "data", listen="127.0.0.1:0", http="127.0.0.1:0", grace_seconds=20)
    )
    running.start()
    yield running
    running.stop()


def test_a_port_file_of_a_killed_server_is_gone_until_the_next_one_answers(tmp_path, monkeypatch):
    (tmp_path / "port").write_text("1\n")
    stale = Settings(data_dir=tmp_path / "data", listen="127.0.0.1:0", port_file=tmp_path / "port")
    seen = []
    running = Server(stale)
    start = running._start

    async def watched():
        seen.append((tmp_path / "port").exists())
        await start()
        seen.append((tmp_path / "port").exists())

    monkeypatch.setattr(running, "_start", watched)
    running.start()
    try:
        assert seen == [False, False]
        assert int((tmp_path / "port").read_text()) == running.port
    finally:
        running.stop()
    assert not (tmp_path / "port").exists()


def test_a_port_file_that_cannot_be_written_leaves_no_server_behind(tmp_path):
    settings = Settings(
        data_dir=tmp_path / "data",
        listen="127.0.0.1:0",
        port_file=tmp_path / "none" / "port",
        kernels="numpy",
    )
    with pytest.raises(OSError, match="port_file = .*cannot be written: No such file"):
        Server(settings).start()
    # Which takes the lock of the directory.
    Store.open(tmp_path / "data").close()


def test_a_stop_whose_event_loop_has_come_to_a_stand_makes_durable_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr("steelyard_server.server._STOP_SECONDS", 0.3)
    running = Server(Settings(data_dir=tmp_path / "data", listen="127.0.0.1:0", kernels="numpy"))
    running.start()
    client = steelyard.connect(running.address)
    client.create_dataset("d", 20)
    client.create_run("r", dataset="d", batch_size=4)
    go_on = threading.Event()
    running._loop.call_soon_threadsafe(go_on.wait, 30)
    began = time.monotonic()
    assert running.stop(5.0) is False
    assert time.monotonic() - began < 5.0
    go_on.set()
    with steelyard.local(tmp_path / "data", kernels="numpy") as after:
        assert [run.name for run in after.list_runs()] == ["r"]


def test_a_second_server_on_a_directory_is_refused_and_leaves_the_first_alone(tmp_path, instance):
    port_file = tmp_path / "port"
    port_file.write_text("7\n")
    with pytest.raises(steelyard.FailedPrecondition, match=str(os.getpid())):
        steelyard.local(instance._settings.data_dir, port_file=port_file)
    assert port_file.read_text() == "7\n"
    assert steelyard.connect(instance.address).list_datasets() == []


def test_an_address_that_is_taken_is_an_oserror_that_names_it(tmp_path, instance):
    for setting in ("listen", "http"):
        taken = instance.address if setting == "listen" else instance.http_address
        second = Server(Settings(data_dir=tmp_path / "other", **{"listen": "127.0.0.1:0", setting: taken}))
        with pytest.raises(OSError, match=taken if setting == "listen" else "in use"):
            second.start()


def test_health_reflection_and_http_tell_what_is_so(instance):
    channel = grpc.insecure_channel(instance.address)
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", *SERVICES):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    [listed] = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10
    )
    assert {one.name for one in listed.list_services_response.service} >= set(SERVICES)
    http = f"http://{instance.http_address}"
    assert status(f"{http}/healthz") == (200, "OK\n")
    assert status(f"{http}/readyz") == (200, "OK\n")
    assert status(f"{http}/nothing")[0] == 404
    code, metrics = status(f"{http}/metrics")
    assert (code, "steelyard_store_healthy 1.0" in metrics) == (200, True)
    channel.close()


def test_the_log_tells_the_life_of_a_run_and_no_loss(instance, raw_of, caplog):
    caplog.set_level(logging.INFO, "steelyard_server.runs")
    client = steelyard.connect(instance.address)
    client.create_dataset("d", 60)
    client.create_run("r", dataset="d", batch_size=8)
    trainer = raw_of(instance.address).trainer()
    trainer.join("r", attempt="a", session="s")
    batch = trainer.expect("batch")
    trainer.report(batch, np.full(8, 123.25, np.float32), digest=batch.digest ^ 1)
    trainer.expect("refusal")
    trainer.send(leave=trainer_pb2.Leave())
    assert trainer.end() is None
    client.run("r").fork("other", step=1)
    client.delete_run("r")
    told = [(one.levelname, _event_of(one)) for one in caplog.records]
    assert told == [
        ("INFO", {"event": "run_created", "run": "r", "dataset": "d", "batch_size": 8}),
        ("INFO", {"event": "attempt_began", "run": "r", "attempt": "a", "world_size": 1, "step": 0}),
        ("INFO", {"event": "rank_joined", "run": "r", "rank": 0, "session": "s"}),
        (
            "WARNING",
            {"event": "report_refused", "run": "r", "rank": 0, "step": 0, "reason": "digest"},
        ),
        ("INFO", {"event": "rank_left", "run": "r", "rank": 0}),
        ("INFO", {"event": "run_forked", "run": "r", "new_run": "other", "step": 1}),
        ("INFO", {"event": "run_deleted", "run": "r"}),
    ]
    assert "123.25" not in str(told)


def _event_of(record):
    """Without when and where, and on behalf of which call."""
    left_out = ("level", "logger", "timestamp", "request_id", "method")
    return {name: value for name, value in record.msg.items() if name not in left_out}


def test_a_server_that_never_served_is_not_said_to_have_stopped(tmp_path, instance, caplog):
    caplog.set_level(logging.INFO, "steelyard_server.server")
    for setting, taken in (("listen", instance.address), ("http", instance.http_address)):
        second = Server(Settings(data_dir=tmp_path / "other", **{"listen": "127.0.0.1:0", setting: taken}))
        with pytest.raises(OSError, match=f"cannot listen on {taken}: address already in use"):
            second.start()
    assert [_event_of(one)["event"] for one in caplog.records] == []
    third = Server(Settings(data_dir=tmp_path / "other", listen="127.0.0.1:0"))
    third.start()
    third.stop()
    assert [_event_of(one)["event"] for one in caplog.records] == ["serving", "stopped"]


def test_a_server_that_drains_says_so_and_ends_its_streams_once_all_is_durable(instance, raw_of, eventually):
    client = steelyard.connect(instance.address)
    client.create_dataset("d", 60)
    client.create_run("r", dataset="d", batch_size=8)
    raw = raw_of(instance.address)
    trainer = raw.trainer()
    trainer.join("r")
    release, held = threading.Event(), threading.Event()

    def block(state):
        held.set()
        return release.wait(20)

    blocked = threading.Thread(target=instance._catalog.run("r").ask, args=(block,))
    batch = trainer.expect("batch")
    blocked.start()
    assert held.wait(10)
    trainer.report(batch, loss(np.arange(8), 0))
    time.sleep(0.2)  # the report is in the run's hands, and the run is busy
    stopping = threading.Thread(target=instance.stop)
    stopping.start()
    stub = health_pb2_grpc.HealthStub(raw._channel)
    ask = health_pb2.HealthCheckRequest()
    eventually(lambda: stub.Check(ask, timeout=10).status == health_pb2.HealthCheckResponse.NOT_SERVING)
    assert status(f"http://{instance.http_address}/readyz")[0] == 503
    late = raw.trainer()
    late.send(join=trainer_pb2.Join(run="r", world_size=1, attempt="b", session="x"))
    assert late.end().code == "UNAVAILABLE"
    release.set()
    trainer.expect("acknowledgement")
    assert trainer.end().code == "UNAVAILABLE"
    stopping.join(20)
    blocked.join(20)
    assert not stopping.is_alive()


def test_sigterm_ends_within_the_grace_with_everything_acknowledged_on_disk(tmp_path):
    with ServerProcess(tmp_path, grace_seconds=20) as process:
        client = process.client()
        client.create_dataset("d", 60)
        run = client.create_run("r", dataset="d", batch_size=8)
        served = train(run, 5)
        with run.join(timeout=20):
            started = time.monotonic()
            assert process.terminate() == 0
            assert time.monotonic() - started < 20
    store = Store.open(tmp_path / "data")
    try:
        [[seq, step]] = Checkpoints(store, 2).list()
        assert (seq, step) == (Journal(store, 2).next_seq, step)
        assert step >= 5
    finally:
        store.close()
    with ServerProcess(tmp_path) as process:
        run = process.client().run("r")
        assert run.info().closed_steps == 5
        assert [run.batch(step).ids.tolist() for step in range(5)] == served


def test_sigterm_under_load_loses_nothing_five_times_over(tmp_path):
    with ServerProcess(tmp_path / "s", grace_seconds=20) as process:
        client = process.client(timeout=60)
        client.create_dataset("d", 60)
        run = client.create_run("r", dataset="d", batch_size=8, draw=SCORED, staleness=2)
        served, failures, stop = [], [], threading.Event()

        def work():
            try:
                with run.join(prefetch=2, timeout=60) as session:
                    while not stop.is_set():
                        batch = session.next()
                        session.report(batch, loss(batch.ids, batch.step))
                        served.append(batch.ids.tolist())
                    session.flush(60)
            except BaseException as error:
                failures.append(error)

        trainer = threading.Thread(target=work)
        trainer.start()
        for _ in range(5):
            seen = len(served)
            deadline = time.monotonic() + 60
            while len(served) < seen + 10:
                assert not failures
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert process.terminate() == 0
            process.start()
        stop.set()
        trainer.join(60)
        assert not failures
        assert run.stats().reported_losses == 8 * len(served)
        with server(tmp_path / "twin") as calm:
            calm.create_dataset("d", 60)
            twin = calm.create_run("r", dataset="d", batch_size=8, draw=SCORED, staleness=2)
            assert train(twin, len(served)) == served
            assert twin.history(range(60)) == run.history(range(60))


def test_a_damaged_record_is_told_with_its_place_and_harms_no_other_run(tmp_path):
    with server(tmp_path) as client:
        client.create_dataset("d", 60)
        for name in ("bad", "good"):
            train(client.create_run(name, dataset="d", batch_size=8), 4)
    # After the last checkpoint there is nothing to replay: the damage is in what only a look back reads.
    seq = damage(tmp_path, step=1)
    with server(tmp_path) as client:
        run = client.run("bad")
        place = f"run 'bad', journal record {seq}"
        with pytest.raises(steelyard.DataLoss, match=place):
            run.rewind(2)
        with pytest.raises(steelyard.DataLoss, match=place):
            run.fork("f", step=3)
        assert len(train(client.run("good"), 2)) == 2
        assert len(train(run, 2)) == 2


def test_a_run_that_cannot_be_read_is_listed_and_deleted_and_others_go_on(tmp_path):
    with ServerProcess(tmp_path) as process:
        client = process.client()
        client.create_dataset("d", 60)
        for name in ("bad", "good"):
            train(client.create_run(name, dataset="d", batch_size=8), 4)
        process.kill()
        seq = damage(tmp_path / "data", step=1)
        process.start()
        run = client.run("good")
        for ask in (lambda: client.run("bad"), lambda: client.run("bad").join(timeout=10)):
            with pytest.raises(steelyard.DataLoss, match=f"run 'bad', journal record {seq}"):
                ask()
        assert [one.name for one in client.list_runs()] == ["bad", "good"]
        assert client.append_examples("d", 4).size == 64
        client.set_column("d", "quality", np.ones(64))
        assert run.info().dataset_size == 64
        assert len(train(run, 2)) == 2
        client.delete_run("bad")
        assert [one.name for one in client.list_runs()] == ["good"]


def test_a_full_disk_is_lived_through(tmp_path, eventually):
    """While files may not grow, nothing is acknowledged and health says so; when they may again, the same trainers go
    on."""
    with ServerProcess(tmp_path / "s", map_size_bytes=1 << 20) as process:
        client = process.client(timeout=60)
        channel = grpc.insecure_channel(process.address)
        check = health_pb2_grpc.HealthStub(channel).Check

        def health():
            return check(health_pb2.HealthCheckRequest(), timeout=10).status

        client.create_dataset("d", 60)
        run = client.create_run("r", dataset="d", batch_size=60, draw=SCORED, staleness=1)
        served = []
        with run.join(prefetch=1, timeout=60) as session:

            def steps(number, timeout=60):
                for _ in range(number):
                    batch = session.next(timeout)
                    session.report_async(batch, loss(batch.ids, batch.step))
                    served.append(batch.ids.tolist())

            steps(5)
            session.flush(30)
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            size = (tmp_path / "s" / "data" / "data.mdb").stat().st_size
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, hard))
            with pytest.raises(steelyard.DeadlineExceeded):
                steps(1000, timeout=2)
            eventually(lambda: health() == health_pb2.HealthCheckResponse.NOT_SERVING)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
            steps(5)
            session.flush(60)
            eventually(lambda: health() == health_pb2.HealthCheckResponse.SERVING)
        channel.close()
        reported = run.stats().reported_losses
        with server(tmp_path / "twin") as calm:
            calm.create_dataset("d", 60)
            twin = calm.create_run("r", dataset="d", batch_size=60, draw=SCORED, staleness=1)
            assert train(twin, len(served)) == served
        assert reported == 60 * len(served)


def test_retention_prunes_the_journal_and_keeps_what_bookmarks_hold(tmp_path):
    settings = {"checkpoint_interval_seconds": 0.2}
    with server(tmp_path, **settings) as client:
        client.create_dataset("d", 60)
        plain = client.create_run("plain", dataset="d", batch_size=8, retain_steps=40, draw=SCORED)
        held = client.create_run("held", dataset="d", batch_size=8, retain_steps=40, draw=SCORED)
        train(held, 10)
        held.bookmark("ten")
        at_ten = [held.batch(step).ids.tolist() for step in range(10)]
        for _ in range(4):
            for run in (plain, held):
                train(run, 30)
                time.sleep(0.6)
        oldest = plain.info().oldest_step
        # The floor moves with what is drawn, which is up to the staleness ahead of what is trained.
        assert 20 <= oldest <= plain.info().next_step - 40
        # Reports of a step are taken for 256 steps, so that far the bookmark holds on.
        assert held.info().oldest_step <= 10
        assert plain.stats().journal_bytes < held.stats().journal_bytes
        with pytest.raises(steelyard.FailedPrecondition, match=f"{oldest}, the oldest retained"):
            plain.rewind(oldest - 1)
        with pytest.raises(steelyard.FailedPrecondition, match="oldest retained"):
            plain.join(start_step=oldest - 1, timeout=10)
        with pytest.raises(steelyard.FailedPrecondition):
            plain.bookmark("gone", 1)
    with server(tmp_path, **settings) as client:
        plain, held = client.run("plain"), client.run("held")
        assert (plain.info().closed_steps, held.info().closed_steps) == (120, 130)
        assert plain.rewind(oldest).next_step == oldest
        assert len(train(plain, 5)) == 5
        assert held.rewind("ten").next_step == 10
        # The bookmark holds the journal from the checkpoint before it, which a slow machine has made later.
        first = held.info().oldest_step
        assert first < 10
        assert [held.batch(step).ids.tolist() for step in range(first, 10)] == at_ten[first:]


def test_a_crash_between_checkpoints_is_made_up_for_by_the_next_drain(tmp_path):
    """What was replayed counts as not saved, so that a server that is killed often does not replay ever more."""
    with ServerProcess(tmp_path) as process:
        client = process.client()
        client.create_dataset("d", 60)
        train(client.create_run("r", dataset="d", batch_size=8), 3)
        process.kill()
        process.start()
        assert client.run("r").info().closed_steps == 3
        assert process.terminate() == 0
    store = Store.open(tmp_path / "data")
    assert [step for _, step in Checkpoints(store, 2).list()][-1:] >= [3]
    store.close()


def test_what_a_killed_fork_left_behind_is_gone_after_the_next_start(tmp_path):
    with server(tmp_path / "s") as client:
        client.create_dataset("d", 10)
        client.create_run("r", dataset="d", batch_size=2)
    with contextlib.closing(Store.open(tmp_path / "s")) as store:
        store.commit(Journal(store, 99).append([StepClosed(1, "owner")])[0])
    with server(tmp_path / "s") as client:
        assert [run.name for run in client.list_runs()] == ["r"]
    with contextlib.closing(Store.open(tmp_path / "s")) as store:
        assert Journal(store, 99).next_seq == 0
        assert Journal(store, 2).next_seq > 0
