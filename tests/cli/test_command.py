"""The command line itself: its words, its refusals, its exit status."""

import inspect
import json
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from steelyard_server.cli import options
from steelyard_server.cli.serve import serve
from steelyard_server.cli.status import status
from steelyard_server.config import Settings
from steelyard_server.policies.policy import parse_policy

ROOT = Path(__file__).resolve().parents[2]


def steelyard(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "steelyard_server", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)


def test_every_setting_has_a_flag_and_every_flag_a_setting() -> None:
    assert [name for name in inspect.signature(serve).parameters if name != "config"] == list(
        Settings.model_fields
    )


def test_help_names_every_verb() -> None:
    done = steelyard("--help")
    assert done.returncode == 0
    for verb in ("serve", "status", "runs", "stats", "batch", "history", "bookmark", "rewind", "fork"):
        assert f"\n  {verb} " in done.stdout
    assert "STEELYARD_MAX_MESSAGE_BYTES" in steelyard("serve", "--help").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serv"], "serv"),
        (["serve"], "steelyard: data_dir is needed: --data-dir"),
        (
            ["serve", "--data-dir", "d", "--call-threads", "x"],
            "steelyard: call_threads = 'x' (from --call-threads)",
        ),
        (
            ["serve", "--data-dir", "d", "--listen", "0.0.0.0:1"],
            "steelyard: listen = '0.0.0.0:1' is not a loopback",
        ),
        (["serve", "--data-dir", "d", "--config", "/none.toml"], "steelyard: cannot read /none.toml"),
        (["rewind", "gpt"], "expected one of --step and --bookmark, got neither"),
        (
            ["rewind", "gpt", "--step", "1", "--bookmark", "b"],
            "expected one of --step and --bookmark, got both",
        ),
        (["fork", "gpt", "b", "--step", "1", "--draw", "shuffle"], "--draw is not JSON"),
        (["fork", "gpt", "b", "--step", "1", "--weigh", "[]"], "--weigh: expected a JSON object, got []"),
        (["history", "gpt"], "ID..."),
        (["history", "gpt", "-1"], "-1"),
        (["batch", "gpt", "-1"], "-1"),
        (["status", "--timeout", "0"], "--timeout"),
    ],
)
def test_bad_usage_is_told_and_is_status_2(words: list[str], message: str) -> None:
    done = steelyard(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_that_of_the_package() -> None:
    done = steelyard("--version")
    assert (done.returncode, done.stdout) == (0, f"steelyard {metadata.version('steelyard')}\n")


def test_the_examples_in_the_help_of_fork_are_policies_of_their_kind() -> None:
    lines = steelyard("fork", "--help", COLUMNS="200").stdout.splitlines()
    shown = {}
    for flag in ("--draw", "--weigh"):
        [line] = [line for line in lines if line.strip().startswith(flag)]
        shown[flag] = json.loads(line[line.index("{") : line.rindex("}") + 1])
    parse_policy(shown["--draw"], shown["--weigh"])


def test_who_asks_says_how_long_to_wait_for_a_server_that_is_not_there() -> None:
    with (
        socket.socket() as closed
    ):  # bound, and never listening: nobody answers, and nobody else takes the port
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        before = time.monotonic()
        done = steelyard("runs", "--timeout", "0.5", STEELYARD_ADDRESS=address)
        took = time.monotonic() - before
    assert done.returncode == 1
    assert f"no answer from {address} within 0.5 s" in done.stderr
    assert took < 20, "the default is 30 s"
    assert inspect.signature(status).parameters["timeout"].default == 5.0


def test_an_address_that_is_taken_is_one_line_and_status_1(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for words in (["--listen", address], ["--listen", "127.0.0.1:0", "--http", address]):
            done = steelyard("serve", "--data-dir", str(tmp_path / "data"), *words)
            assert done.returncode == 1
            assert done.stderr == f"steelyard: cannot listen on {address}: address already in use\n"


def test_without_the_server_extra_the_command_says_what_to_install() -> None:
    """-S leaves out every installed package, so this is a real interpreter without the extra."""
    paths = [str(ROOT / "client"), str(ROOT / "server")]
    script = f"import sys; sys.path += {paths}; from steelyard_server.cli.main import app; app()"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "pip install 'steelyard[server]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_numbers_stand_right_and_words_left(capsys: pytest.CaptureFixture[str]) -> None:
    options.print_table(("run", "step", "loss"), [("a", 5, 0.25), ("long-name", 1000, float("nan"))])
    assert capsys.readouterr().out.splitlines() == [
        "run        step  loss",
        "a             5  0.25",
        "long-name  1000     -",
    ]


def test_json_has_no_number_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    options.print_json({"a": float("nan"), "b": (1, float("inf")), "c": {"d": 0.5}})
    printed = capsys.readouterr().out
    assert json.loads(printed, parse_constant=pytest.fail) == {"a": None, "b": [1, None], "c": {"d": 0.5}}
