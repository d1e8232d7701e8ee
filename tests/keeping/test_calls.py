"""A backup, a restore and the first start on a folder of an older format, disturbed at one system call after the other:
killed on entering it, or the call fails. The old is there, or the new, and what comes next goes on from it.

STEELYARD_POWER=all takes every n of every call that changes something, and a folder that the version before wrote;
without it most are left out, and which is fixed. Restores verify in a process of their own, which takes its time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import lmdb
import pytest

from steelyard.testing import ServerProcess
from steelyard_server.history.ops import u64
from tests.robustness.faults.outcome import ROOT
from tests.robustness.power import strace

pytestmark = pytest.mark.skipif(strace.missing() is not None, reason=strace.missing() or "")

EVERYTHING = os.environ.get("STEELYARD_POWER") == "all"
SECONDS = 1200 if EVERYTHING else 100
COMPAT = ROOT / "tests" / "compat"
# From one call that is disturbed to the next, and of which call alone, for CI; what is not here is not tried there.
SOME: dict[tuple[str, str], tuple[str, ...]] = {
    ("backup", "kill"): ("6",),
    ("backup", "error"): ("9",),
    ("restore", "kill"): ("2", "rename"),
    ("upgrade", "kill"): ("3",),
}


def disturbed(what: str, how: str, store: Path, scratch: Path) -> Counter[str]:
    """How often the old and the new was found."""
    if not EVERYTHING and (what, how) not in SOME:
        pytest.skip("STEELYARD_POWER=all tries it")
    scratch.mkdir()
    given = ("1",) if EVERYTHING else SOME[what, how]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.keeping.programs.disturbed",
            what,
            str(store),
            str(scratch),
            how,
            *given,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: Counter[str] = sum(map(Counter, json.loads(done.stdout.splitlines()[-1]).values()), Counter())
    return found


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("what", ["backup", "restore"])
def test_killed_at_a_system_call_it_is_whole_or_not_there(what: str, store_dir: Path, tmp_path: Path) -> None:
    found = disturbed(what, "kill", store_dir, tmp_path / "scratch")
    assert found.keys() == {"old", "new"}
    print(f"{what}: {found.total()} kills, {found}")


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("what", ["backup", "restore"])
def test_after_an_error_of_a_system_call_it_is_whole_or_not_there(
    what: str, store_dir: Path, tmp_path: Path
) -> None:
    found = disturbed(what, "error", store_dir, tmp_path / "scratch")
    assert found["old"]
    print(f"{what}: {found.total()} errors, {found}")


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("how", ["kill", "error"], ids=["killed", "error"])
def test_a_folder_of_an_older_format_is_upgraded_by_the_start_after(
    how: str, store_dir: Path, tmp_path: Path
) -> None:
    """The last three versions had formats of which each is read as it is: a start makes the tables that are missing,
    and writes the new number."""
    older = written_by_the_version_before(tmp_path / "before") if EVERYTHING else store_dir
    make_older(older)
    found = disturbed("upgrade", how, older, tmp_path / "scratch")
    assert found["old"]
    assert found["new"]
    print(f"upgrade: {found.total()} {'kills' if how == 'kill' else 'errors'}, {found}")


def make_older(directory: Path) -> None:
    """As a program of format 1 would have left it: without the tables that it does not know, where they are empty."""
    with lmdb.open(str(directory), max_dbs=16) as environment:
        meta = environment.open_db(b"meta")
        for name in (b"holes", b"segments"):
            table = environment.open_db(name)
            with environment.begin(write=True) as transaction:
                if not transaction.stat(table)["entries"]:
                    transaction.drop(table)
        with environment.begin(write=True) as transaction:
            transaction.put(b"format", u64(1), db=meta)


def written_by_the_version_before(folder: Path) -> Path:
    """By its wheel: a server that was killed with a trainer at work."""
    with zipfile.ZipFile(sorted((COMPAT / "wheels").glob("*.whl"))[-1]) as wheel:
        wheel.extractall(folder / "wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "wheel"))
        patch.delenv("STEELYARD_POWER")  # no setting of a server
        process = ServerProcess(folder, kernels="numpy")
        process.start()
        try:
            subprocess.run(
                [sys.executable, str(COMPAT / "life.py"), process.address, "begin"], check=True, timeout=100,
                capture_output=True,
            )  # fmt: skip
        finally:
            process.kill()
    return folder / "data"
