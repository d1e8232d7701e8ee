"""The crash test itself, for a fixed number of rounds from a fixed seed; and that it finds what is wrong.

`make crash` goes on with other seeds for as long as it is told.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "crash" / "run.py"
SEED = "20261123"
LEAST_KILLS = 30
"""Of each round."""
FOUND = {
    "twin": "expected (ids|probability)",
    "server": "expected (ids|probability|weights|column|history)|ReportRefused",
}
"""A server that remembers another loss draws or weighs by it, or refuses the right one when it is sent again."""


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(PROGRAM), "--seed", SEED, "--folder", str(folder), *arguments]


def crash(folder: Path, *arguments: str, seconds: float = 280) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments), capture_output=True, text=True, timeout=seconds, check=False
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", ["0", "1"], ids=["sync", "interval"])
def test_runs_that_are_killed_again_and_again_are_as_those_that_nobody_disturbed(
    number: str, tmp_path: Path
) -> None:
    done = crash(tmp_path, "--minutes", "60", "--round", number, "--rounds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"round {number} held" in done.stdout
    killed = re.search(r"(\d+) processes killed", done.stdout)
    assert killed is not None
    assert int(killed[1]) >= LEAST_KILLS
    assert list(tmp_path.iterdir()) == [], "a round that held leaves nothing"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", ["server", "twin"])
def test_a_planted_fault_is_found_and_said_with_its_seed_and_its_files(fault: str, tmp_path: Path) -> None:
    done = crash(tmp_path, "--rounds", "1", "--plant", fault, "--kinds", "server", "server")
    assert done.returncode == 1, done.stdout + done.stderr
    failure = f"FAILED in round 0 of seed {SEED}: (run|attempt)"
    assert re.search(rf"{failure}.*({FOUND[fault]})", done.stdout, re.DOTALL), done.stdout
    assert f"make crash SEED={SEED} ROUND=0" in done.stdout
    [kept] = tmp_path.iterdir()
    assert str(kept) in done.stdout
    assert (kept / "server" / "data" / "data.mdb").exists()


def test_a_plan_follows_from_its_seed_and_round_alone(tmp_path: Path) -> None:
    def plan(hashes: str) -> str:
        return subprocess.run(
            [sys.executable, str(PROGRAM), "--plan", "--seed", "7", "--round", "3"],
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hashes},
        ).stdout

    first = plan("1")
    assert first.startswith("round 3 of seed 7")
    assert first == plan("2")


@pytest.mark.timeout(120)
def test_an_interrupt_ends_it_and_every_process_that_it_started(tmp_path: Path) -> None:
    running = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/attempt-0/rank.*")):
            assert running.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline, "no trainer has joined within 60 s"
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait(30)
    assert running.returncode == 130, out
    assert "interrupted" in out
    assert processes_that_name(tmp_path) == []


def processes_that_name(folder: Path) -> list[str]:
    """Command lines of processes that were given something in `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended meanwhile
        if any(word.startswith(str(folder)) for word in words):
            found.append(" ".join(words))
    return found
