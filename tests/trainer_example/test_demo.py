import subprocess
import sys
import time
from pathlib import Path

import demo
import pytest

# Stands for train.py: a rank that waits for its worker, which is stuck.
STUCK = """
import os, time

def stuck_in_the_worker():
    time.sleep(60)

def waiting_in_the_rank():
    os.waitpid(worker, 0)

if (worker := os.fork()) == 0:
    stuck_in_the_worker()
waiting_in_the_rank()
"""


def test_the_demo_loses_nothing_and_says_what_it_found(example: Path, tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    done = subprocess.run(
        [sys.executable, str(example / "demo.py"), "--quick", "--out", str(picture)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "batches served               80, of 32 examples" in done.stdout
    assert "reports lost                 0 of 2560 losses" in done.stdout
    assert "server kills survived        2" in done.stdout
    assert "One seed cannot tell" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="workers are found on Linux only")
def test_a_training_that_runs_out_of_time_shows_where_its_ranks_and_their_workers_stand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(STUCK)
    monkeypatch.setattr(demo, "HERE", tmp_path)
    with demo.ranks({}, tmp_path / "out") as processes:
        deadline = time.monotonic() + 20
        while not all(demo.workers_of(process) for process in processes):
            assert time.monotonic() < deadline, "the ranks did not start their workers"
            time.sleep(0.05)
        time.sleep(0.5)  # for the workers to get to where they are stuck
        with pytest.raises(TimeoutError) as error:
            demo.check(processes, tmp_path / "out", time.monotonic())
    assert str(error.value).count("in waiting_in_the_rank") == demo.RANKS
    assert str(error.value).count("in stuck_in_the_worker") == demo.RANKS


def test_the_port_where_ranks_meet_is_not_one_that_connections_are_given() -> None:
    assert all(10_000 <= demo.free_port() < 32_000 for _ in range(20))
