"""The disk is full, fails, or is slow; the map may grow no further."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from steelyard.errors import SteelyardError
from tests.robustness.faults.registry import Bench, Broken, CannotBeTried, Round, fault
from tests.robustness.faults.scene import BATCH, Scene
from tests.robustness.power import strace

MIB = 1 << 20
STUCK_SECONDS = 1.0
"""A trainer that has had no batch for so long waits."""


@fault(
    "disk full",
    how="a tmpfs is filled by another file under load, and emptied again seconds later",
    bar="no error for a client that retries, reads refused with a status or served, goes on within 10 s of there being "
    "room, without a restart; nothing acknowledged lost",
    rounds=10,
)
def full(bench: Bench) -> Iterator[Round]:
    with (
        _tmpfs(bench.folder / "disk", 64 * MIB if bench.short else 1024 * MIB) as disk,
        Scene(bench, data_dir=disk / "data") as scene,
    ):
        while True:
            rate = scene.load()
            began, failed = time.monotonic(), _failures(scene)
            _fill(disk / "ballast", leave=bench.moments.randrange(4 * MIB))
            _await_failure(scene, failed)
            waited = _await_stuck(scene, began)
            refused = _refused(scene)
            time.sleep(bench.moments.uniform(0.2, 3.0))
            (disk / "ballast").unlink()
            emptied = time.monotonic()
            again = scene.await_batch(emptied).at - emptied
            if again > 10 and not bench.short:
                raise Broken(f"with room again, no batch came for {again:.1f} s")
            scene.settle()
            yield Round(
                rate,
                {
                    "reads refused while full": refused,
                    "served until it stood, s": waited,
                    "trains again, s": again,
                },
            )


@fault(
    "disk errors",
    how="libfiu fails writes with ENOSPC and syncs with EIO, 5 % of each, for seconds under load",
    bar="no false acknowledgement: nothing lost, nothing twice; no restart",
    rounds=10,
)
def errors(bench: Bench) -> Iterator[Round]:
    if subprocess.run(["sh", "-c", "command -v fiu-run"], capture_output=True).returncode:
        raise CannotBeTried("fiu-run is not installed (Debian: fiu-utils)")
    with _Fiu(bench) as scene:
        while True:
            rate = scene.load()
            failed = _failures(scene)
            for name, code in (("pwrite", 28), ("writev", 28), ("fdatasync", 5)):
                kind = "sync" if name == "fdatasync" else "rw"
                _fiu(scene, f"enable_random name=posix/io/{kind}/{name},probability=0.05,failinfo={code}")
            time.sleep(1.0 if bench.short else 4.0)
            for name in ("rw/pwrite", "rw/writev", "sync/fdatasync"):
                _fiu(scene, f"disable name=posix/io/{name}")
            healed = time.monotonic()
            again = scene.await_batch(healed).at - healed
            scene.settle()
            if (failed := _failures(scene) - failed) == 0:
                raise Broken("no commit failed: nothing was injected")
            yield Round(rate, {"failed commits": failed, "trains again, s": again})


@fault(
    "slow disk",
    how="strace delays every sync of the server by 200 ms, for seconds under load",
    bar="slower and correct: queue and memory bounded, reads go on",
    rounds=5,
)
def slow(bench: Bench) -> Iterator[Round]:
    if missing := strace.missing():
        raise CannotBeTried(missing)
    with Scene(bench) as scene:
        while True:
            rate = scene.load()
            before, pages = len(scene.trainer.told), _resident(scene.server.pid)
            with _traced(scene, "inject=fdatasync:delay_enter=200000", bench.folder / "strace"):
                began, reads = time.monotonic(), []
                while time.monotonic() < began + (2.0 if bench.short else 8.0):
                    asked = time.monotonic()
                    scene.run.info()
                    reads.append(time.monotonic() - asked)
                    time.sleep(0.02)
                scene.trainer.new()
                slowed = (len(scene.trainer.told) - before) / (time.monotonic() - began)
            grown = (_resident(scene.server.pid) - pages) / MIB
            if grown > 256:
                raise Broken(f"the server grew by {grown:.0f} MiB while its disk was slow")
            scene.settle()
            yield Round(
                rate,
                {
                    "batches/s while slow": slowed,
                    "longest read, s": max(reads),
                    "server grown, MiB": grown,
                },
            )


@fault(
    "map full",
    how="a map of 1 MiB at first, 48 MiB at most (short: 24), is filled by the run and emptied by deleting another",
    bar="no failed report while it may grow; then trainers wait, and go on within 10 s of there being room",
    rounds=3,
)
def map_full(bench: Bench) -> Iterator[Round]:
    most, folder = (24 if bench.short else 48) * MIB, bench.folder
    for number in range(1000):
        small = Bench(folder / str(number), bench.moments, short=True)
        small.folder.mkdir()
        with Scene(small, map_size_bytes=MIB, max_map_size_bytes=most) as scene:
            _fill_half(scene, most)
            rate = scene.load()
            began = time.monotonic()
            waited = _await_stuck(scene, began)
            scene.client.delete_run("ballast")
            emptied = time.monotonic()
            again = scene.await_batch(emptied).at - emptied
            grew = scene.server.log.read_text(errors="replace").count("the map grew")
            if not grew:
                raise Broken(f"a map of 1 MiB did not grow\n{scene.server.words()}")
            scene.settle()
            figures = {"growths": grew, "filled in, s": waited, "trains again, s": again}
        yield Round(rate, figures)


def _fill_half(scene: Scene, most: int) -> None:
    """A run that takes about half of the map: batches, and their reports."""
    run = scene.client.create_run("ballast", dataset="d", batch_size=BATCH * 8)
    with run.join() as session:
        for _ in range(most // 2 // (BATCH * 8 * 8)):
            batch = session.next()
            session.report(batch, batch.ids % 7)


@contextlib.contextmanager
def _tmpfs(place: Path, size: int) -> Iterator[Path]:
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        raise CannotBeTried(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def _fill(ballast: Path, leave: int) -> None:
    """Takes all of the disk but `leave` bytes, in one file: in pieces, since one that does not fit is given back."""
    size, piece = 0, 64 * MIB
    with ballast.open("wb") as file:
        while piece >= 4096:
            found = os.statvfs(ballast)
            wanted = min(piece, found.f_bavail * found.f_frsize - leave)
            try:
                os.posix_fallocate(file.fileno(), size, max(1, wanted))
                size += max(1, wanted)
            except OSError:
                piece //= 2
            if wanted < 4096:
                break


def _await_failure(scene: Scene, failed: int) -> None:
    """Until a commit has failed that is not among the first `failed`."""
    _await(lambda: _failures(scene) > failed, "no commit has failed: the disk was not full", seconds=90)


def _await_stuck(scene: Scene, since: float) -> float:
    """Waits until the trainer waits; for how many seconds it went on. Broken where it never stands."""
    deadline = time.monotonic() + 120
    while True:
        last = scene.trainer.told[-1].at if scene.trainer.told else since
        if time.monotonic() - max(last, since) > STUCK_SECONDS:
            return max(0.0, last - since)
        if time.monotonic() > deadline:
            raise Broken("the trainer went on for 120 s: the disk was not full")
        scene.trainer.new()
        time.sleep(0.02)


def _refused(scene: Scene) -> int:
    """1 where a read is refused (Unavailable, by name), 0 where it is served. Anything else raises."""
    try:
        scene.run.info()
        scene.run.column("last_loss")
    except SteelyardError as error:
        if type(error).__name__ not in ("Unavailable", "ResourceExhausted"):
            raise Broken(f"a read on a full disk gets {error!r}") from error
        return 1
    return 0


class _Fiu(Scene):
    def begin(self) -> None:
        self.server.before = ("fiu-run", "-x")
        super().begin()


def _fiu(scene: Scene, command: str) -> None:
    pid = _server_of(scene.server.pid)
    done = subprocess.run(["fiu-ctrl", "-c", command, str(pid)], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise CannotBeTried(f"fiu-ctrl: {done.stderr.strip()}")


def _server_of(pid: int) -> int:
    """The server itself, where a shell was put before it."""
    while (
        b"steelyard_server" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        or b"sh" in Path(f"/proc/{pid}/comm").read_bytes()
    ):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            break
        pid = int(children[0])
    return pid


def _failures(scene: Scene) -> int:
    return scene.server.log.read_text(errors="replace").count("its outcome is unknown")


def _resident(pid: int) -> int:
    """Bytes of memory that are the process's own: the map of the store is the kernel's to take back."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise Broken(f"process {pid} has ended")


@contextlib.contextmanager
def _traced(scene: Scene, inject: str, output: Path) -> Iterator[None]:
    """strace on the server, which goes on without it afterwards."""
    call = inject.partition("=")[2].partition(":")[0]
    tracer = subprocess.Popen(
        [
            "strace",
            "-f",
            "-qq",
            "-o",
            str(output),
            "-e",
            f"trace={call}",
            "-e",
            inject,
            "-p",
            str(scene.server.pid),
        ],
        stderr=subprocess.PIPE,
    )
    try:
        _await(
            lambda: b"TracerPid:\t0" not in Path(f"/proc/{scene.server.pid}/status").read_bytes(),
            "strace attaches",
        )
        yield
    finally:
        tracer.terminate()
        tracer.communicate(timeout=30)
    if "DELAYED" not in output.read_text(errors="replace"):
        raise Broken("strace delayed nothing: nothing was tested")


def _await(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Broken(f"after {seconds:g} s: {what}")
        time.sleep(0.01)
