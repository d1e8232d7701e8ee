"""Backups that are half, whoever makes or restores one is killed, and data that goes back to the version before."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import steelyard
from steelyard.errors import SteelyardError
from steelyard_server.history.store import FORMAT_VERSION
from steelyard_server.keeping.errors import NotWholeError
from steelyard_server.keeping.restoring import restore
from tests.robustness.faults.daemon import Daemon
from tests.robustness.faults.machine import digest
from tests.robustness.faults.outcome import ROOT
from tests.robustness.faults.registry import Bench, Broken, CannotBeTried, Round, fault
from tests.robustness.faults.scene import Scene

SECONDS = 120
PAGE = 4096
WHEELS = ROOT / "tests" / "compat" / "wheels"
STORE = Path("steelyard_server") / "history" / "store.py"


@fault(
    "half a backup",
    how="a backup that was made under load is cut at every 4 KiB, loses a file, has a bit flipped",
    bar="refused, and nothing restored; whole again it is restored as it was",
    rounds=3,
    suite=False,
)
def half(bench: Bench) -> Iterator[Round]:
    place = bench.folder / "backups"
    with Scene(_small(bench), backup_to=place) as scene:
        while True:
            rate = scene.load()
            backup = place / _backed_up(scene)
            scene.settle()
            refused = 0
            for file in sorted(backup.iterdir()):
                whole = file.read_bytes()
                at = bench.moments.randrange(len(whole))
                flipped = whole[:at] + bytes([whole[at] ^ 1 << bench.moments.randrange(8)]) + whole[at + 1 :]
                # One after the other: all at once they are gigabytes.
                cut = (whole[:size] for size in range(0, len(whole), PAGE))
                for spoilt in itertools.chain(cut, (flipped, None)):
                    file.unlink(missing_ok=True)
                    if spoilt is not None:
                        file.write_bytes(spoilt)
                    _check_refused(backup, bench.folder / "restored")
                    refused += 1
                file.write_bytes(whole)
            _check_restores(backup, bench.folder / "restored")
            yield Round(rate, {"refused": refused})


def _check_refused(backup: Path, directory: Path) -> None:
    try:
        restore(str(backup), directory)
    except NotWholeError:
        if directory.exists():
            raise Broken("a backup that is not whole was refused, and left something") from None
        return
    raise Broken(f"a backup that is not whole was restored: {backup}")


@fault(
    "killed in a backup",
    how="kill -9 of the server at a random moment of a backup, under load",
    bar="what is listed is whole, the rest is none; the run goes on as after any kill, and the next backup succeeds",
    rounds=20,
    suite=False,
)
def killed_in_backup(bench: Bench) -> Iterator[Round]:
    place = bench.folder / "backups"
    with Scene(_small(bench), backup_to=place) as scene:
        scene.load()
        began = time.monotonic()
        _backed_up(scene)
        lasts = time.monotonic() - began
        while True:
            rate = scene.load()
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(_backed_up, scene)
                time.sleep(bench.moments.uniform(0, lasts))
                cut_off = not asked.done()
                scene.server.kill()
                scene.server.start()
                scene.await_batch()
                with contextlib.suppress(SteelyardError):
                    asked.result(SECONDS)
            for name in sorted(path.parent.name for path in place.glob("*/manifest.json")):
                _check_restores(place / name, bench.folder / "restored")
            next_one = _backed_up(scene)
            scene.settle()
            for path in place.iterdir():
                if path.name != next_one:
                    shutil.rmtree(path, ignore_errors=True)
            yield Round(rate, {"cut off": int(cut_off)})


@fault(
    "killed in a restore",
    how="kill -9 of `steelyard restore` at a random moment, of a backup that was made under load",
    bar="no server takes what is there for data, unless it is all; restored again, it is as it was",
    rounds=20,
    suite=False,
)
def killed_in_restore(bench: Bench) -> Iterator[Round]:
    place = bench.folder / "backups"
    with Scene(_small(bench), backup_to=place) as scene:
        rate = scene.load()
        backup = place / _backed_up(scene)
    began = time.monotonic()
    _check_restores(backup, bench.folder / "restored")
    lasts = time.monotonic() - began
    while True:
        folder = bench.folder / "killed"
        restoring = _verb("restore", "--from", str(backup), "--data-dir", str(folder / "data"))
        time.sleep(bench.moments.uniform(0.2, 1) * lasts)
        restoring.send_signal(signal.SIGKILL)
        restoring.communicate(timeout=SECONDS)
        whole = (folder / "data" / "data.mdb").exists()
        refused = 0
        if not whole and (folder / "data" / "restoring").exists():
            server = Daemon(folder)
            server.spawn()
            if server.wait() == 0 or "restor" not in server.words():
                raise Broken(f"a server began in a folder where a restore was killed\n{server.words()}")
            refused = 1
        if not whole:
            _done(_verb("restore", "--from", str(backup), "--data-dir", str(folder / "data")))
        _check_serves(folder)
        shutil.rmtree(folder)
        yield Round(rate, {"restored before the kill": int(whole), "refused by a server": refused})


@fault(
    "previous version",
    how="data that this version wrote under load is given to a server of the version before (its wheel), and back",
    bar="it goes on with the same batches, or refuses with a message and changes nothing",
    rounds=3,
    suite=False,
)
def previous(bench: Bench) -> Iterator[Round]:
    wheels = sorted(WHEELS.glob("*.whl"))
    if not wheels:
        raise CannotBeTried(f"there is no wheel in {WHEELS}")
    old = bench.folder / "old"
    with zipfile.ZipFile(wheels[-1]) as wheel:
        wheel.extractall(old)
    older: Mapping[str, str] = {"PYTHONPATH": str(old)}
    _check_is_old(older)
    older_format = f"\nFORMAT_VERSION = {FORMAT_VERSION}\n" not in (old / STORE).read_text()
    with Scene(bench) as scene:
        while True:
            rate = scene.load()
            scene.server.kill()
            scene.server.environment = older
            figures = _refused(scene.server) if older_format else _goes_on(scene)
            scene.server.environment = {}
            scene.server.start()
            scene.load()
            scene.settle()
            yield Round(rate, figures)


def _refused(server: Daemon) -> dict[str, int | float]:
    before = digest(server.data)
    server.spawn()
    status, words = server.wait(), server.words()[-1000:]
    if status != 1 or f"has format {FORMAT_VERSION}" not in words:
        raise Broken(f"the server of the version before ended with status {status}, and wrote\n{words}")
    if digest(server.data) != before:
        raise Broken("a server that refused its data has changed it")
    return {"old server refuses": 1}


def _goes_on(scene: Scene) -> dict[str, int | float]:
    began = time.monotonic()
    scene.server.start()
    again = scene.await_batch(began).at - began
    scene.load()
    scene.settle()
    scene.server.terminate()
    return {"old server trains again, s": again}


def _check_is_old(environment: Mapping[str, str]) -> None:
    """Broken where a process with that environment is of this version: then nothing would be tested."""
    told = subprocess.run(
        [sys.executable, "-c", "import steelyard_server; print(steelyard_server.__file__)"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if not told.startswith(environment["PYTHONPATH"]):
        raise Broken(f"the server of the version before would be {told.strip()}")


def _small(bench: Bench) -> Bench:
    """A backup of it takes a second."""
    return Bench(bench.folder, bench.moments, bench.short, examples=100_000)


def _verb(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "steelyard_server", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _done(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=SECONDS)
    if process.returncode:
        raise Broken(f"{process.args!r} ended with status {process.returncode}: {said[-2000:]}")
    return said


def _backed_up(scene: Scene) -> str:
    """The name of a backup that the server makes now."""
    with steelyard.connect(scene.server.address, timeout=SECONDS) as client:
        return client.admin.backup().name


def _check_restores(backup: Path, directory: Path) -> None:
    """Broken where a backup that is listed is not whole."""
    try:
        restore(str(backup), directory)
    except NotWholeError as error:
        raise Broken(f"a backup with a manifest is not whole: {error}") from error
    shutil.rmtree(directory)


def _check_serves(folder: Path) -> None:
    """Broken where a server does not serve what was restored."""
    server = Daemon(folder)
    try:
        server.start()
        with steelyard.connect(server.address, timeout=60) as client:
            run = client.run("r")
            step = run.info().next_step
            if run.batch(step - 1).step != step - 1:
                raise Broken("the newest batch of a restored run is another")
            run.column("last_loss")
    finally:
        server.end()
