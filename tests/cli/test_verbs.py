"""The verbs, as commands of their own process, against a real server."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import steelyard
import steelyard.testing
from steelyard_server.history.journal import Journal
from steelyard_server.history.ops import Put, Table, u64
from steelyard_server.history.registry import Registry
from steelyard_server.history.store import Store

STEPS = 4


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[steelyard.Client]:
    """A server with one run, four steps of eight examples trained in it; the losses are id + step / 10."""
    with steelyard.testing.server(tmp_path_factory.mktemp("server")) as client:
        client.create_dataset("text", size=16)
        run = client.create_run("gpt", dataset="text", batch_size=8, seed=1, staleness=0)
        with run.join() as session:
            for _ in range(STEPS):
                batch = session.next()
                session.report(batch, batch.ids.astype(np.float32) + batch.step / 10)
            session.flush(30)
        yield client


def steelyard_at(client: steelyard.Client, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "steelyard_server", *words, "--address", client.address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def printed(client: steelyard.Client, *words: str) -> str:
    done = steelyard_at(client, *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_status_says_how_far_each_run_is(client: steelyard.Client) -> None:
    stats = json.loads(printed(client, "status", "--json"))["runs"]["gpt"]
    assert stats["closed_steps"] == STEPS
    assert stats["reported_losses"] == STEPS * 8
    head, row = printed(client, "status").splitlines()[:2]
    assert head.split()[:3] == ["run", "next_step", "closed_steps"]
    assert row.split()[0] == "gpt"


def test_runs_lists_what_is_drawn_and_how(client: steelyard.Client) -> None:
    [run] = [run for run in json.loads(printed(client, "runs", "--json")) if run["name"] == "gpt"]
    assert (run["dataset"], run["batch_size"], run["draw"]["method"], run["staleness"]) == (
        "text",
        8,
        "shuffle",
        0,
    )
    assert "shuffle" in printed(client, "runs")


def test_history_prints_the_losses_of_an_example(client: steelyard.Client) -> None:
    kept = json.loads(printed(client, "history", "gpt", "3", "5", "--json"))
    assert kept == {
        str(i): [[step, pytest.approx(i + step / 10)] for step, _ in kept[str(i)]] for i in (3, 5)
    }
    assert [len(kept[i]) for i in ("3", "5")] == [2, 2]  # four steps of 8 are two epochs of 16
    lines = printed(client, "history", "gpt", "3").splitlines()
    assert lines[0].split() == ["id", "step", "loss"]
    assert [int(line.split()[1]) for line in lines[1:]] == [step for step, _ in kept["3"]]


def test_stats_prints_all_that_the_client_is_told(client: steelyard.Client) -> None:
    stats = json.loads(printed(client, "stats", "gpt", "--json"))
    assert list(stats) == [field.name for field in dataclasses.fields(steelyard.Stats)]
    assert (stats["closed_steps"], stats["reported_losses"]) == (STEPS, STEPS * 8)
    rows = dict(line.split() for line in printed(client, "stats", "gpt").splitlines())
    assert rows.pop("stat") == "value"
    assert list(rows) == list(stats)
    assert rows["reported_losses"] == str(STEPS * 8)


def test_stats_and_status_name_what_nobody_brings(client: steelyard.Client) -> None:
    draw = {"method": "scored", "score": "last_el2n", "sampling": "independent"}
    client.create_run("lacking", dataset="text", batch_size=8, draw=draw)
    try:
        (text,) = client.run("lacking").stats().missing_inputs
        assert text.startswith("draw 'scored' reads the signal 'el2n', through 'last_el2n', which no report")
        assert printed(client, "stats", "lacking").splitlines()[-1] == f"missing: {text}"
        assert f"run lacking, missing: {text}" in printed(client, "status")
    finally:
        client.delete_run("lacking")


def test_retention_prints_what_is_kept_and_what_a_bookmark_costs(client: steelyard.Client) -> None:
    run = client.run("gpt")
    run.bookmark("kept", 2)
    try:
        known = json.loads(json.dumps(dataclasses.asdict(run.retention())))
        assert json.loads(printed(client, "retention", "gpt", "--json")) == known
        lines = [line.split() for line in printed(client, "retention", "gpt").splitlines()]
        assert ["oldest_step", "0"] in lines
        assert ["journal_bytes", str(known["journal_bytes"])] in lines
        assert lines[-2:] == [["bookmark", "step", "journal_bytes"], ["kept", "2", "0"]]
    finally:
        run.delete_bookmark("kept")


def test_batch_prints_what_was_drawn_at_a_step(client: steelyard.Client) -> None:
    batch = json.loads(printed(client, "batch", "gpt", "1", "--json"))
    served = client.run("gpt").batch(1)
    assert batch == {
        "run": "gpt",
        "step": 1,
        "id": served.ids.tolist(),
        "probability": [1 / 16] * 8,
        "weight": [1.0] * 8,
    }
    lines = printed(client, "batch", "gpt", "1").splitlines()
    assert lines[0].split() == ["id", "probability", "weight"]
    assert [int(line.split()[0]) for line in lines[1:]] == batch["id"]


def test_a_bookmark_is_forked_from_and_rewound_to(client: steelyard.Client) -> None:
    assert printed(client, "bookmark", "gpt", "start", "--step", "2") == "start is step 2 of gpt\n"
    assert "start=2" in printed(client, "runs")
    forked = printed(
        client, "fork", "gpt", "side", "--bookmark", "start", "--weigh", '{"method": "linupper", "r": 0.4}'
    )
    assert forked == "side begins at step 2 of gpt\n"
    side = client.run("side")
    assert printed(client, "bookmark", "side", "fresh") == "fresh is step 2 of side\n"
    with side.join() as session:
        batch = session.next()
        session.report(batch, np.ones(8, np.float32))
        session.flush(30)
    assert side.info().closed_steps == 3
    assert printed(client, "rewind", "side", "--bookmark", "fresh") == "side goes on at step 2\n"
    assert side.info().closed_steps == 2
    assert printed(client, "rewind", "side", "--step", "2") == "side goes on at step 2\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["history", "nobody", "1"], "nobody"),
        (["stats", "nobody"], "nobody"),
        (["batch", "gpt", "99"], "99"),
        (["history", "gpt", "16"], "16"),
        (["rewind", "gpt", "--step", "99"], "99"),
        (["fork", "gpt", "gpt", "--step", "1"], "gpt"),
        (["fork", "gpt", "x", "--step", "1", "--draw", '{"method": "shufle"}'], "shuffle"),
    ],
)
def test_what_the_server_refuses_is_one_line_and_status_1(
    client: steelyard.Client, words: list[str], message: str
) -> None:
    done = steelyard_at(client, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("steelyard: ")
    assert message in done.stderr


def test_the_address_may_come_from_the_environment(client: steelyard.Client) -> None:
    command = [sys.executable, "-m", "steelyard_server", "runs"]
    environ = {"STEELYARD_ADDRESS": client.address}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gpt" in done.stdout


def test_a_served_directory_is_refused_to_a_second_server(client: steelyard.Client, tmp_path: Path) -> None:
    with steelyard.testing.ServerProcess(tmp_path / "s") as first:
        data = next(path.parent for path in (tmp_path / "s").rglob("data.mdb"))
        command = [
            sys.executable,
            "-m",
            "steelyard_server",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            str(data),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert str(first.pid) in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_delete_asks_and_takes_what_it_is_told(client: steelyard.Client) -> None:
    client.create_dataset("spare", size=4)
    run = client.create_run("spare", dataset="spare", batch_size=2)
    run.bookmark("here", 0)
    unsaid = steelyard_at(client, "delete", "spare")
    assert (unsaid.returncode, unsaid.stdout) == (1, "Delete run spare? [y/N]: "), "nobody has said yes"
    for missing in (["none"], ["--dataset", "none"], ["spare", "--bookmark", "none"]):
        done = steelyard_at(client, "delete", *missing)
        assert (done.returncode, done.stdout) == (1, ""), "nobody is asked about what there is not"
        assert "'none'" in done.stderr
    assert (
        printed(client, "delete", "spare", "--bookmark", "here", "--yes")
        == "deleted bookmark here of run spare\n"
    )
    assert run.info().bookmarks == {}
    assert steelyard_at(client, "delete", "--dataset", "spare", "--yes").returncode == 1, "a run is on it"
    assert printed(client, "delete", "spare", "--yes") == "deleted run spare\n"
    assert printed(client, "delete", "--dataset", "spare", "--yes") == "deleted dataset spare\n"
    assert steelyard_at(client, "delete", "--yes").returncode == 2


def test_numbers_of_groups_are_printed_with_six_digits(client: steelyard.Client) -> None:
    client.create_dataset("grouped", size=9)
    client.set_column("grouped", "group", np.arange(9) % 3)
    run = client.create_run(
        "thirds", dataset="grouped", batch_size=3, mix={"method": "static", "shares": [1, 1, 1]}
    )
    run.change_policy(mix={"method": "static", "shares": [1 / 3, 2 / 3, 0]})
    assert "0.333333 0.666667 0\n" in printed(client, "stats", "thirds")
    line = next(one for one in printed(client, "events", "thirds").splitlines() if "policy_changed" in one)
    assert "from step 0: draw" in line
    assert "shares=[0.333333, 0.666667, 0]" in line


def test_a_damaged_run_is_named_with_its_fault_beside_the_others_and_can_be_deleted(tmp_path: Path) -> None:
    with steelyard.testing.ServerProcess(tmp_path, kernels="numpy") as server:
        client = server.client()
        client.create_dataset("text", size=16)
        for name in ("bad", "good", "new"):
            client.create_run(name, dataset="text", batch_size=4)
        for name in ("bad", "good"):
            with client.run(name).join() as session:
                session.report(session.next(), np.ones(4, np.float32))
                session.flush(30)
        server.kill()
        store = Store.open(tmp_path / "data")
        row = Registry(store).run("bad")
        assert row is not None
        key = u64(row.run_id, Journal(store, row.run_id).seq_of_step(0) or 0)
        value = bytearray(store.get(Table.JOURNAL, key) or b"")
        value[-3] ^= 4
        store.commit([Put(Table.JOURNAL, key, bytes(value))])
        store.close()
        server.start()
        client = server.client()

        told = steelyard_at(client, "status")
        assert told.returncode == 1
        states = {line.split()[0]: line.split()[-1] for line in told.stdout.splitlines()[1:4]}
        assert states == {"bad": "DATA_LOSS", "good": "ok", "new": "ok"}
        assert "run bad, fault: DATA_LOSS: run 'bad', journal record" in told.stdout
        stats = json.loads(steelyard_at(client, "status", "--json").stdout)["runs"]
        assert (stats["good"]["closed_steps"], stats["good"]["fault"]) == (1, "")
        assert stats["bad"].keys() == {"fault"}

        listed = {run["name"]: run["fault"] for run in json.loads(printed(client, "runs", "--json"))}
        assert "run 'bad', journal record" in listed.pop("bad")
        assert listed == {"good": "", "new": ""}
        assert steelyard_at(client, "delete", "bad").stdout == "Delete run bad? [y/N]: "
        printed(client, "delete", "bad", "--yes")
        printed(client, "status")
