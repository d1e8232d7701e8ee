"""A disk that is full: everybody who asks is told so, and the log once."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import numpy as np
import pytest

import steelyard

MIB = 1 << 20
NO_SPACE = "No space left on device"


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    how = ["mount", "-t", "tmpfs", "-o", f"size={16 * MIB}", "tmpfs", str(place)]
    if (mounted := subprocess.run(how, capture_output=True, text=True)).returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_named_to_all_who_ask_and_once_in_the_log(watched, disk, caplog, eventually):
    caplog.set_level(logging.WARNING, "steelyard_server")
    server = watched(data_dir=disk / "data", disk_headroom_bytes=0)
    with steelyard.connect(server.server.address, timeout=20) as client:
        client.create_dataset("d", 200_000)
        busy = client.create_run("busy", dataset="d", batch_size=8)
        idle = client.create_run("idle", dataset="d", batch_size=8)
        _fill(disk / "ballast")
        ids = np.arange(200_000)
        with pytest.raises(steelyard.Unavailable, match=NO_SPACE):
            busy.observe(ids, np.random.default_rng(0).random(len(ids)))

        _, why = eventually(lambda: (said := server.get("/readyz"))[0] == 503 and said)
        assert "a commit failed, and no other has succeeded since: " in why
        assert NO_SPACE in why
        for run in (busy, idle):
            with pytest.raises(steelyard.Unavailable, match=NO_SPACE):
                run.stats()
        with pytest.raises(steelyard.SteelyardError, match=NO_SPACE):
            idle.join(timeout=1)
        command = [
            sys.executable,
            "-m",
            "steelyard_server",
            "status",
            "--timeout",
            "20",
            "--address",
            server.server.address,
        ]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert asked.returncode
        assert NO_SPACE in asked.stderr
        lines = [one.msg for one in caplog.records if isinstance(one.msg, dict)]
        told = [(one["run"], one["error"]) for one in lines if one["event"] == "run_not_loaded"]
        assert "busy" in {run for run, _ in told}
        assert len(told) == len(set(told)) <= 4, told

        (disk / "ballast").unlink()
        eventually(lambda: server.get("/readyz")[0] == 200)
        client.delete_run("busy")
        assert eventually(idle.stats).next_step == 0


def _fill(ballast):
    """Takes all that is left of the disk but a little, which the next commit needs more than."""
    found = os.statvfs(ballast.parent)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - 65536)
