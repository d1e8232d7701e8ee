"""The runbook, done as it is written: install, upgrade, back up, lose everything, restore, train on."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import steelyard
from steelyard_server.config import PREFIX
from tests.deploy.programs.train import train
from tests.deploy.prometheus import ROOT
from tests.deploy.runbook import Host, blocks

PROGRAM = Path(__file__).parent / "programs" / "train.py"
BEFORE = next((ROOT / "tests" / "compat" / "wheels").glob("steelyard-*.whl"))
Served = dict[int, list[int]]


def version(wheel: Path) -> str:
    return wheel.name.split("-")[1]


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of what is in the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        timeout=100,
        capture_output=True,
    )
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    one = Host(tmp_path)
    yield one
    one.kill()


def trained(host: Host, by: str, steps: int) -> Served:
    """What a trainer with the client of version `by` got in a process of its own."""
    done = subprocess.run(
        [host.path(f"/opt/steelyard/{by}/bin/python"), PROGRAM, host.address, str(steps)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr + host.log()
    return dict(json.loads(line) for line in done.stdout.splitlines())


def figure(host: Host, name: str) -> float:
    """Of /metrics; 0 where it is not there."""
    with urllib.request.urlopen(f"http://{host.http}/metrics", timeout=30) as answer:
        found = re.search(rf"^{name} (\S+)$", answer.read().decode(), flags=re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.timeout(400)
def test_the_runbook_from_an_older_version_to_a_restored_server_that_serves_what_would_have_followed(
    host: Host, now: Path, tmp_path_factory: pytest.TempPathFactory, eventually: Callable[..., Any]
) -> None:
    old, new = version(BEFORE), version(now)
    with steelyard.local(tmp_path_factory.mktemp("twin")) as client:
        undisturbed: Served = dict(train(client, 60))

    host.run("install", VERSION=old, WHEEL=BEFORE)
    host.lend_packages(old)
    server = host.serve()
    host.run("ready")
    first = trained(host, old, 10)

    # The new version beside the old one, which drains and saves.
    host.run("install", VERSION=new, WHEEL=now)
    host.lend_packages(new)
    host.run("drain", SERVER=server)
    assert host.ended() == 0, host.log()
    host.run("backup-stopped")
    settings = {PREFIX + "BACKUP_TO": host.path("/var/backups/steelyard")}
    host.serve(**settings)
    host.run("ready")
    upgraded = trained(host, old, 10) | trained(host, new, 10)

    host.run("backup")
    lost = trained(host, new, 10)
    host.kill()
    shutil.rmtree(host.path("/var/lib/steelyard/data"))

    host.run("drill")
    host.run("restore")
    host.serve(**settings)
    host.run("ready")
    again = trained(host, new, 20)
    # The drill is known to the server, although it was done beside it.
    for name in ("steelyard_backup_timestamp_seconds", "steelyard_restore_verified_timestamp_seconds"):
        assert eventually(lambda name=name: figure(host, name)) > 1e9

    assert [min(part) for part in (first, upgraded, lost, again)] == [0, 10, 30, 30]
    for part in (first, upgraded, lost, again):
        assert part == {step: undisturbed[step] for step in part}
    assert host.walked == set(blocks()) - {"chart"}
