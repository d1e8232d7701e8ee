"""kill -9 before operations of a backup, a restore and a compaction: the old is there, or the new, and nothing between.

STEELYARD_KEEPING=all kills before every operation.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "kill_at.py"
EVERYTHING = os.environ.get("STEELYARD_KEEPING") == "all"
# Those at which something changes: before what is made is there, and around the rename that makes it count.
SOME = {"backup": (9, -4, -2), "restore": (8, -8, -3), "compact": (20, -6, -2)}
MOST = 400


@pytest.mark.timeout(3600 if EVERYTHING else 120)
@pytest.mark.parametrize("action", ["backup", "restore", "compact"])
def test_a_kill_leaves_the_old_or_the_new(action: str, store_dir: Path, tmp_path: Path) -> None:
    numbers = tuple(range(MOST)) if EVERYTHING else SOME[action]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), action, str(store_dir), str(tmp_path / "work"), *map(str, numbers)],
        capture_output=True, text=True, timeout=3500 if EVERYTHING else 110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["undisturbed"][1:] == [0, "new"]
    killed = [state for _, status, state in told["kills"] if status == -signal.SIGKILL]
    assert len(killed) >= (told["operations"] - 2 if EVERYTHING else len(numbers))
    assert set(killed) <= {"old", "new"}
    assert "old" in killed
    print(f"{action}: {len(killed)} kills, {killed.count('old')} left the old, {killed.count('new')} the new")
