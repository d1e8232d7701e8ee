"""Handles and sessions across processes: loaders' workers and children, by fork, spawn and forkserver, and exits.

Every case runs in a process of its own with a deadline, so that a hang is a failure that names the case.
"""

import os
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


def test_workers_may_be_forked_beside_many_sessions(address):
    """gRPC's own fork handlers aborted the workers here, or stood still in the trainer's fork, once in some fifty; each
    fork that they took part in is a line on stderr."""
    pytest.importorskip("torch")
    program = [sys.executable, str(PROGRAMS / "fork_beside_sessions.py"), address]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=100)
    assert (ran.returncode, ran.stdout) == (0, "trained [64, 64, 64]\n"), ran.stderr
    assert "fork_posix" not in ran.stderr


@pytest.mark.parametrize(
    "module",
    [
        "steelyard.client",
        "steelyard.session",
        "steelyard.torch",
        "steelyard.testing",
        "steelyard.v1.runs_pb2_grpc",
    ],
)
def test_grpc_is_imported_with_its_fork_handlers_off(module):
    if module == "steelyard.torch":
        pytest.importorskip("torch")
    program = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            print(os.environ.get("GRPC_ENABLE_FORK_SUPPORT"))
sys.meta_path.insert(0, Watch())
import {module}
"""
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment
    )
    assert ran.stdout == "0\n", ran.stderr


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
