"""Handles and sessions across processes: loaders' workers and children, by fork, spawn and forkserver, and exits.

Every case runs in a process of its own with a deadline, so that a hang is a failure that names the case.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from steelyard.testing import ServerProcess

PROGRAMS = Path(__file__).parent / "programs"
SIZE = 400


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("server")) as process:
        client = process.client()
        client.create_dataset("d", SIZE)
        client.create_run("r", dataset="d", batch_size=16)
        yield process.address


def run_program(name, *arguments, timeout=60):
    # From Python 3.12 on the interpreter warns of what is tested here: a fork of a process that has threads.
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    command = [sys.executable, *warnings, str(PROGRAMS / name), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert ran.returncode == 0, f"status {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout.split("\n")[:-1]


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_loader_workers_hold_the_handle_while_the_session_streams(address, start):
    pytest.importorskip("torch")
    said = run_program("load_with_workers.py", address, start)
    assert said[0] == "batches 30, reported 480"
    if start == "fork":
        assert said[1:] == ["worker: FAILED_PRECONDITION"] * 2
    else:
        assert said[1:] == ["worker: 16"] * 2


def test_a_forked_child_is_told_at_once_and_neither_it_nor_its_parent_hangs(address):
    assert run_program("fork_children.py", address, "20") == ["0 0 " + "0 " * 17 + "0", "parent goes on"]


def test_a_child_forked_before_the_first_use_may_use_the_handle(address):
    assert run_program("fork_first.py", address) == ["child: 16", "parent: 16"]


def test_a_child_forked_while_another_library_uses_grpc_is_told_as_well(address):
    if not Path("/proc/self/task").is_dir():
        pytest.skip("the threads of other libraries are seen on Linux only")
    assert run_program("fork_under_foreign_grpc.py", address) == ["child: FAILED_PRECONDITION"]


@pytest.mark.parametrize("how", ["idle", "in next", "in flush", "unhandled error", "while reconnecting"])
def test_an_interpreter_that_exits_with_a_session_open_does_not_hang(address, how):
    assert run_program("exit_with_session.py", address, how, timeout=30) == ["exits"]
