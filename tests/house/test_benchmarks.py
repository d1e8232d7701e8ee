"""Benchmarks run: with tiny sizes, so that the figures mean nothing here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "benchmarks"
HELPERS = {"run", "measure", "processes", "peers", "lives", "plots"}
NAMES = sorted({path.stem for path in FOLDER.glob("*.py")} - HELPERS)


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_runs_and_writes_what_it_found(name: str, tmp_path: Path) -> None:
    found = tmp_path / "bench.json"
    command = [sys.executable, str(FOLDER / "run.py"), "--quick", "--repeats", "1", "--only", name]
    done = subprocess.run(
        [*command, "--json", str(found)], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    tables = json.loads(found.read_text())["tables"]
    assert tables
    for table in tables:
        assert table["title"] in done.stdout
        for series in table["series"]:
            place = f"{table['title']}: {series['name']}"
            assert [value for value in series["values"] if math.isfinite(value) and value >= 0], place
            if series["against"] not in (None, series["name"]):
                assert series["ratios"], f"{place} is held against {series['against']!r}, which is not there"
    assert list(tmp_path.iterdir()) == [found], "something was left beside the values"
