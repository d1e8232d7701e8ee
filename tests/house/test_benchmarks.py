"""Benchmarks run: with tiny sizes, so that the figures mean nothing here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "benchmarks"
HELPERS = {"run", "measure", "processes", "peers", "lives", "plots", "own_kernels"}
TOGETHER = ["cycle", "memory", "scale"]
"""Two of them are sides of one life, and the pictures are drawn from all three."""
NAMES = sorted({path.stem for path in FOLDER.glob("*.py")} - HELPERS - set(TOGETHER))


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_runs_and_writes_what_it_found(name: str, tmp_path: Path) -> None:
    found = tmp_path / "bench.json"
    run_and_check([name], found)
    assert list(tmp_path.iterdir()) == [found], "something was left beside the values"


def test_pictures_are_drawn_from_what_was_found(tmp_path: Path) -> None:
    found = tmp_path / "bench.json"
    run_and_check(TOGETHER, found)
    assert list(tmp_path.iterdir()) == [found], "something was left beside the values"
    parts = parts_of(found, lambda table: table["title"].startswith("cycle: "))
    done = run("plots.py", [*map(str, parts), "--to", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    for name in ("growth-ids.png", "growth-batch.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG"), name


def test_a_peer_that_cannot_be_installed_is_left_out_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "cpprb").write_text("where its environment would be made")
    done = run("peers.py", ["cpprb", "--to", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert "cpprb: left out: " in done.stdout
    told = run_and_check(["cycle"], tmp_path / "bench.json", "--peers", str(tmp_path))
    assert "cpprb: could not be installed: " in told


def parts_of(found: Path, first: Callable[[dict[str, Any]], bool]) -> list[Path]:
    """The same values in two files: the tables that are `first`, and the others."""
    values = json.loads(found.read_text())
    paths = [found.with_name("first.json"), found.with_name("second.json")]
    for path, wanted in zip(paths, (True, False), strict=True):
        tables = [table for table in values["tables"] if first(table) is wanted]
        assert tables
        path.write_text(json.dumps({**values, "tables": tables}))
    return paths


def run_and_check(names: list[str], found: Path, *more: str) -> str:
    """Tables are told and written, with figures and ratios. What was printed."""
    peers = more or ("--peers", str(found.parent / "none"))
    done = run("run.py", ["--quick", "--repeats", "1", "--only", *names, "--json", str(found), *peers])
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
    return done.stdout


def run(script: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / script), *arguments]
    return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=100)
