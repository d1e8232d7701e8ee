import subprocess
import sys
from pathlib import Path


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
