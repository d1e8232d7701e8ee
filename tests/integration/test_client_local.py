"""Servers that tests and notebooks start themselves."""

import os
import pickle
import signal
import subprocess
import sys

import pytest

import steelyard
from steelyard.testing import ServerProcess


def test_a_local_server_keeps_its_data_from_one_time_to_the_next(tmp_path):
    with steelyard.local(tmp_path / "data") as client:
        client.create_dataset("d", 10)
        other = pickle.loads(pickle.dumps(client))
        assert other.dataset("d").size == 10
        other.close()
        assert client.dataset("d").size == 10
    with steelyard.local(tmp_path / "data") as client:
        assert client.dataset("d").size == 10


def test_a_directory_has_one_server(tmp_path):
    with steelyard.local(tmp_path), pytest.raises(steelyard.FailedPrecondition, match=str(tmp_path)):
        steelyard.local(tmp_path)


def test_settings_are_the_servers_and_wrong_ones_are_refused(tmp_path):
    with pytest.raises(steelyard.InvalidArgument) as refused:
        steelyard.local(tmp_path, durabilty="sync")
    unknown = "unknown setting 'durabilty'; did you mean 'durability'?"
    assert str(refused.value) == f"steelyard.local({str(tmp_path)!r}): {unknown}"
    with pytest.raises(steelyard.InvalidArgument, match="durability"):
        steelyard.local(tmp_path, durability="never")
    with steelyard.local(tmp_path, durability="interval") as client:
        assert client.list_runs() == []


def test_the_environment_configures_no_server_of_this_process(tmp_path, monkeypatch):
    monkeypatch.setenv("STEELYARD_DURABILITY", "never")
    monkeypatch.setenv("STEELYARD_NO_SUCH_THING", "1")
    with steelyard.local(tmp_path) as client:
        assert client.list_runs() == []


def test_the_server_stops_with_the_interpreter(tmp_path):
    source = (
        "import sys, steelyard\n"
        "client = steelyard.local(sys.argv[1])\n"
        "client.create_dataset('d', 10)\n"
        "session = client.create_run('r', dataset='d', batch_size=2).join()\n"
        "session.next()\n"
    )
    subprocess.run([sys.executable, "-c", source, str(tmp_path)], check=True, timeout=60)
    with steelyard.local(tmp_path) as client:
        assert client.run("r").info().batch_size == 2


def test_a_forked_child_stops_no_server_of_its_parent(tmp_path):
    source = (
        "import os, sys, steelyard\n"
        "with steelyard.local(sys.argv[1]) as client:\n"
        "    client.create_dataset('d', 10)\n"
        "    with client.create_run('r', dataset='d', batch_size=2).join() as session:\n"
        "        pid = os.fork()\n"
        "        if pid == 0:\n"
        "            sys.exit(int(sys.argv[2]))\n"
        "        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "        session.report(session.next(), [1.0, 2.0])\n"
        "    print(status, client.run('r').stats().reported_losses)\n"
    )
    for status in ("0", "3"):
        command = [sys.executable, "-c", source, str(tmp_path / status), status]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert said.stdout == f"{status} 2\n"


def test_a_missing_server_package_is_named_with_what_to_install(tmp_path):
    source = (
        "import sys; sys.modules['lmdb'] = None\n"
        "import steelyard\n"
        "try:\n"
        "    steelyard.local(sys.argv[1])\n"
        "except steelyard.FailedPrecondition as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", source, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "lmdb" in said
    assert "pip install 'steelyard[server]'" in said


def test_a_server_process_is_killed_and_started_again_on_the_same_port(tmp_path):
    with ServerProcess(tmp_path) as process:
        client, pid = process.client(), process.pid
        client.create_dataset("d", 10)
        process.kill()
        with pytest.raises(steelyard.FailedPrecondition, match="not running"):
            process.terminate()
        process.start()
        with pytest.raises(steelyard.FailedPrecondition, match="running already"):
            process.start()
        assert process.pid != pid
        assert client.dataset("d").size == 10
        assert process.terminate() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)


def test_a_server_process_that_cannot_start_shows_what_it_wrote(tmp_path):
    process = ServerProcess(tmp_path, durability="never")
    with pytest.raises(steelyard.Unavailable, match="(?s)ended with status .* it wrote:.*never"):
        process.start()
