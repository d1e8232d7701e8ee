"""The verb `events`, as a command of its own process, against a real server."""

import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import steelyard
import steelyard.testing
from steelyard import wire

SCORED = {"method": "scored", "score": "last_loss", "floor": 0.1}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[steelyard.Client]:
    """A server with one run to which everything happened."""
    with steelyard.testing.server(tmp_path_factory.mktemp("server")) as client:
        client.create_dataset("text", size=1_300_000)
        run = client.create_run("gpt", dataset="text", batch_size=12, seed=1, staleness=0, draw=SCORED)
        with run.join(attempt="first", prefetch=1) as session:
            for _ in range(3):
                batch = session.next()
                session.report(batch, batch.ids.astype(np.float32) / 3 + batch.step)
                session.flush()
        run.bookmark("start", 2)
        run.observe([1, 2], {"loss": [0.1, float("nan")], "correct": [1, 0]}, step=1)
        client.append_examples("text", 2)
        client.retire("text", [1_300_001])
        run.change_policy(weigh={"method": "importance"})
        client.set_column("text", "quality", np.ones(1_300_002, np.float32))
        run.change_policy(draw={**SCORED, "score": "quality"})
        run.close_step(3)
        run.delete_bookmark("start")
        yield client


def steelyard_at(client: steelyard.Client, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "steelyard_server", *words, "--address", client.address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def lines(client: steelyard.Client, *words: str) -> list[str]:
    done = steelyard_at(client, "events", "gpt", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_every_event_is_a_line(client: steelyard.Client) -> None:
    printed = lines(client)
    events = list(client.run("gpt").events())
    assert [int(line.split()[0]) for line in printed] == [event.record for event in events]
    names = [line.split()[1] for line in printed]
    assert set(names) == {
        "run_created", "policy_changed", "column_set", "dataset_grown", "ids_retired", "batch_drawn",
        "losses_reported", "signals_observed", "step_closed", "attempt_began", "bookmarked",
    }  # fmt: skip
    text = "\n".join(line.split(maxsplit=2)[2] for line in printed)
    batch = client.run("gpt").batch(1)
    for expected in (
        "gpt on text, 1300000 examples: batch_size 12, seed 1, staleness 0, draw scored alpha=1 ",
        "first, world_size 1, goes on from step 0",
        f"step 1: ids {' '.join(map(str, batch.ids[:8]))} ... (12); probability ",
        f"state 1; digest {batch.digest:016x}",
        "step 1, positions 0..11: loss ",
        "start is step 2",
        "start is gone",
        "with step 1, ids 1 2: correct 1 0; loss 0.1 nan",
        "1300002 examples",
        "ids 1300001",
        "weigh importance beta=1",
        "quality of 0 1 2 3 4 5 6 7 ... (1300002): 1 1 1 1 1 1 1 1 ... (1300002)",
        "step 3, by owner",
    ):
        assert expected in text, expected


def test_a_line_of_json_is_enough_to_check_a_batch(client: steelyard.Client) -> None:
    run = client.run("gpt")
    objects = [json.loads(line) for line in lines(client, "--json")]
    drawn = [one for one in objects if one["event"] == "batch_drawn"]
    assert [one["step"] for one in drawn] == [0, 1, 2, 3]
    for one in drawn:
        batch = run.batch(one["step"])
        assert int(one["digest"], 16) == wire.batch_digest(one["step"], one["ids"]) == batch.digest
        np.testing.assert_array_equal(one["probability"], batch.probability)
        assert one["state_version"] == batch.state_version
    reported = [one for one in objects if one["event"] == "losses_reported"]
    for one in reported:
        np.testing.assert_array_equal(
            np.array(one["signals"]["loss"], np.float32),
            run.batch(one["step"]).ids.astype(np.float32) / 3 + one["step"],
        )
    [observed] = [one for one in objects if one["event"] == "signals_observed"]
    assert observed["signals"]["loss"][1] is None
    assert objects[0]["spec"]["draw"]["score"] == "last_loss"


def test_a_span_of_steps_is_printed(client: steelyard.Client) -> None:
    printed = lines(client, "--from", "1", "--to", "2")
    assert [line.split()[1] for line in printed] == ["batch_drawn", "losses_reported"]
    done = steelyard_at(client, "events", "gpt", "--from", "2", "--to", "1")
    assert done.returncode == 1
    assert done.stderr == "steelyard: from_step: expected at most to_step, 1; got 2\n"
    done = steelyard_at(client, "events", "gpt", "--from", "77")
    assert (done.returncode, done.stdout) == (1, "")
    assert "got 77, which is not drawn yet" in done.stderr


def test_a_reader_that_has_seen_enough_may_close_the_pipe(client: steelyard.Client) -> None:
    command = [
        sys.executable,
        "-m",
        "steelyard_server",
        "events",
        "gpt",
        "--json",
        "--address",
        client.address,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["event"] == "run_created"
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == ""
