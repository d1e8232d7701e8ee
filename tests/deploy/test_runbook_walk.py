"""The runbook, done as it is written: install, upgrade, back up, lose everything, restore, train on."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import pytest

import steelyard
from steelyard_server.config import PREFIX
from steelyard_server.history.ops import Table, u64
from steelyard_server.history.store import FORMAT_VERSION
from tests.deploy.authority import Authority, laid
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


def contents(folder: Path) -> dict[str, bytes]:
    """Of each file of a server's folder, but for locks."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and "lock" not in path.name.lower()
    }


def make_newer(folder: Path) -> None:
    """A store as a later version would leave it, of a format that nobody knows yet."""
    with lmdb.open(str(folder), max_dbs=len(Table)) as env:
        meta = env.open_db(Table.META.encode())
        with env.begin(write=True) as txn:
            txn.put(b"format", u64(FORMAT_VERSION + 1), db=meta)


def renewed(host: Host, settings: dict[str, object]) -> tuple[Served, int]:
    """What a trainer got while the server's certificate, and then the CA of both, were exchanged; the server."""
    old, new = Authority(), Authority()
    names = "localhost", "127.0.0.1"
    laid(host.path("/etc/steelyard/tls"), old.secret(*names))
    shown = laid(host.path("/etc/steelyard/trainer"), old.secret("trainer.internal"))
    for name, file in (("TLS_CERT", "tls.crt"), ("TLS_KEY", "tls.key"), ("TLS_CLIENT_CA", "ca.crt")):
        settings[PREFIX + name] = host.path(f"/etc/steelyard/tls/{file}")
    server = host.serve(**settings)
    host.run("ready", STEELYARD_CA=shown.ca, STEELYARD_CERT=shown.cert, STEELYARD_KEY=shown.key)
    served: Served = {}
    folders = [host.path(f"/etc/steelyard/{name}") for name in ("tls", "trainer")]

    def exchange(block: str, into: Path, secret: dict[str, bytes]) -> None:
        """The block, in the folder of the server or of the trainer; who is connected and who comes train on."""
        laid(into / "new", secret)
        host.run(block, FOLDER=into, NEW=into / "new")
        with steelyard.connect(host.address, credentials=shown) as another:
            for client in (lasting, another):
                served.update(train(client, 2))

    with steelyard.connect(host.address, credentials=shown) as lasting:
        served.update(train(lasting, 2))
        before = host.run("tls-taken")
        exchange("tls-certificate", folders[0], old.secret(*names, days=50))
        assert host.run("tls-taken") != before
        bundles = new.secret("unused.internal")
        for folder in folders:
            exchange("tls-both", folder, bundles)
        exchange("tls-certificate", folders[0], new.secret(*names))
        exchange("tls-certificate", folders[1], new.secret("trainer.internal"))
        for folder in folders:
            exchange("tls-drop", folder, bundles)
    forgotten = laid(host.path("/etc/steelyard/forgotten"), old.secret("trainer.internal"))
    forgotten = replace(forgotten, ca=shown.ca)
    with (
        steelyard.connect(host.address, credentials=forgotten, timeout=2) as client,
        pytest.raises(steelyard.SteelyardError, match="certificate"),
    ):
        client.list_runs()
    return served, server


def format_of(wheel: Path) -> int:
    """The newest format on disk that this version knows."""
    with zipfile.ZipFile(wheel) as held:
        text = held.read("steelyard_server/history/store.py").decode()
    [found] = re.findall(r"^FORMAT_VERSION = (\d+)$", text, flags=re.MULTILINE)
    return int(found)


def went_back(host: Host, old: str) -> Served:
    """What the version before serves of the folder that the one of today has written; nothing, where it cannot."""
    host.run("back", BEFORE=old)
    if format_of(BEFORE) < FORMAT_VERSION:
        return {}
    server = host.serve()
    host.run("ready")
    served = trained(host, old, 5)
    host.run("drain", SERVER=server)
    assert host.ended() == 0, host.log()
    return served


def went_back_by_the_backup(host: Host, old: str, new: str, backup: str) -> Served:
    """What the version before serves of a backup, after it has refused a folder of a format that it does not know."""
    data = host.path("/var/lib/steelyard/data")
    make_newer(data)
    before = contents(data)
    host.serve()
    assert host.ended() != 0
    assert "has format" in host.log().splitlines()[-1], host.log()
    assert contents(data) == before
    host.run("back-by-backup", VERSION=new, BACKUP=backup)
    host.serve()
    host.run("ready")
    return trained(host, old, 5)


@pytest.mark.timeout(400)
def test_the_runbook_from_an_older_version_to_a_restored_server_that_serves_what_would_have_followed(
    host: Host, now: Path, tmp_path_factory: pytest.TempPathFactory, eventually: Callable[..., Any]
) -> None:
    old, new = version(BEFORE), version(now)
    with steelyard.local(tmp_path_factory.mktemp("twin")) as client:
        undisturbed: Served = dict(train(client, 65))

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
    said = host.run("backup-before-stopped", VERSION=new)
    [kept] = re.findall(r"^\S+/(\S+): ", said, flags=re.MULTILINE)
    settings: dict[str, object] = {PREFIX + "BACKUP_TO": host.path("/var/backups/steelyard")}
    # The way back outlasts what each new backup removes.
    settings[PREFIX + "BACKUP_KEEP"] = 1
    host.serve(**settings)
    host.run("ready")
    upgraded = trained(host, old, 10) | trained(host, new, 10)

    host.run("backup-before")
    host.run("backup")
    lost = trained(host, new, 10)
    host.kill()
    shutil.rmtree(host.path("/var/lib/steelyard/data"))

    host.run("drill")
    host.run("restore")
    again, server = renewed(host, settings)
    # The drill is known to the server, although it was done beside it.
    for name in ("steelyard_backup_timestamp_seconds", "steelyard_restore_verified_timestamp_seconds"):
        assert eventually(lambda name=name: figure(host, name)) > 1e9

    host.run("drain", SERVER=server)
    assert host.ended() == 0, host.log()
    back = went_back(host, old)
    once_more = went_back_by_the_backup(host, old, new, kept)

    for start, part in [(0, first), (10, upgraded), (30, lost), (30, again), (60, back), (10, once_more)]:
        assert min(part, default=start) == start
        assert part == {step: undisturbed[step] for step in part}
    assert host.walked == set(blocks())
