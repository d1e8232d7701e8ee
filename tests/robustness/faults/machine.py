"""What else becomes of a server: its clock jumps, another is started beside it, its data is newer, a reader dies."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb

from tests.robustness.faults.daemon import Daemon
from tests.robustness.faults.registry import Bench, Broken, CannotBeTried, Round, fault
from tests.robustness.faults.scene import Scene

DAY = 86_400
MOVED_CLOCK = Path(__file__).parent / "programs" / "clock.c"
OPEN_AND_READ = """
import os, sys, lmdb
environment = lmdb.open(sys.argv[1], max_dbs=32, max_readers=512)
with environment.begin() as transaction:
    transaction.stat()
    print("reading", flush=True)
    os.read(0, 1)
"""


@fault(
    "clock jumps",
    how="a preloaded library (clock.c) moves the server's wall clock by a day, forth and back, under load",
    bar="same batches, nothing lost, no wait grows",
    rounds=10,
)
def clock(bench: Bench) -> Iterator[Round]:
    if shutil.which("cc") is None:
        raise CannotBeTried("there is no C compiler")
    library, offset = bench.folder / "clock.so", bench.folder / "offset"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, MOVED_CLOCK, "-ldl"], check=True)
    offset.write_bytes(struct.pack("=q", 0))
    scene = Scene(bench)
    scene.server.environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}
    with offset.open("r+b") as file, mmap.mmap(file.fileno(), 8) as moved, scene:
        while True:
            rate = scene.load()
            longest = 0.0
            for days in (1, -1, 0):
                jumped = time.monotonic()
                moved[:] = struct.pack("=q", days * DAY)
                longest = max(longest, scene.await_batch(jumped).at - jumped)
                time.sleep(0.3)
                if days == 1:
                    _see_tomorrow(scene)
            scene.settle()
            if longest > 10:
                raise Broken(f"after a jump of the clock no batch came for {longest:.1f} s")
            yield Round(rate, {"jumps": 3, "next batch after a jump, s": longest})


def _see_tomorrow(scene: Scene) -> None:
    """Broken where the server does not live in tomorrow: then nothing would be tested."""
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env={**os.environ, **scene.server.environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if abs(float(told) - time.time() - DAY) > 600:
        raise Broken(f"a process under the moved clock has {told.strip()}; the time is {time.time()}")
    if "clock.so" not in Path(f"/proc/{scene.server.pid}/maps").read_text():
        raise Broken("the server did not load the library that moves its clock")


@fault(
    "second server",
    how="under load another one is started on the same data, and one on the same port",
    bar="each exits with a message that says why; the first goes on",
    rounds=5,
)
def second(bench: Bench) -> Iterator[Round]:
    with Scene(bench) as scene:
        for number in range(1000):
            rate = scene.load()
            other = Daemon(bench.folder / f"data-{number}", data_dir=scene.server.data)
            same_port = Daemon(bench.folder / f"port-{number}", listen=scene.server.address)
            for one, word in ((other, str(scene.server.data)), (same_port, "cannot listen")):
                one.spawn()
                status = one.wait()
                if status in (0, None) or status < 0 or word not in one.words():
                    raise Broken(f"a second server ended with status {status}, and wrote\n{one.words()}")
                if "Traceback" in one.words():
                    raise Broken(f"a second server ended with a traceback\n{one.words()}")
            scene.settle()
            yield Round(rate, {"refused": 2})


@fault(
    "newer format",
    how="the data's format version is raised by one; the server is started on it",
    bar="refused with both versions named, and no byte changed",
    rounds=3,
)
def newer(bench: Bench) -> Iterator[Round]:
    with Scene(bench) as scene:
        rate = scene.load()
        scene.settle()
        for _ in range(1000):
            scene.server.terminate()
            version = _format(scene.server.data, +1)
            before = digest(scene.server.data)
            scene.server.spawn()
            status = scene.server.wait()
            words = scene.server.words()[-1000:]
            if status != 1 or f"format {version}" not in words or str(version - 1) not in words:
                raise Broken(f"on format {version} the server ended with status {status}, and wrote\n{words}")
            if digest(scene.server.data) != before:
                raise Broken("a server that refused its data has changed it")
            _format(scene.server.data, -1)
            scene.server.start()
            scene.load()
            scene.settle()
            yield Round(rate, {"refused": 1})


def _format(data: Path, by: int) -> int:
    """Changes the version of the format, and returns it."""
    with (
        lmdb.open(str(data), max_dbs=32, map_size=1 << 36) as environment,
        environment.begin(write=True, db=environment.open_db(b"meta")) as transaction,
    ):
        version = int.from_bytes(transaction.get(b"format", default=b""), "big") + by
        transaction.put(b"format", version.to_bytes(8, "big"))
    return version


def digest(data: Path) -> dict[str, str]:
    """Of every file but the lock, which whoever looks takes."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(data.iterdir())
        if path.name not in ("lock.mdb", "LOCK")
    }


@fault(
    "stale reader",
    how="a process that reads the data is killed with kill -9 in its transaction, under load",
    bar="the pages that it held are used again: the file grows by what is written and no more",
    rounds=5,
)
def stale(bench: Bench) -> Iterator[Round]:
    with Scene(bench) as scene:
        while True:
            rate = scene.load()
            reader = subprocess.Popen(
                [sys.executable, "-c", OPEN_AND_READ, str(scene.server.data)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert reader.stdout is not None
            assert reader.stdin is not None
            if reader.stdout.readline() != b"reading\n":
                raise Broken("the reader could not read")
            os.kill(reader.pid, signal.SIGKILL)
            reader.wait(30)
            reader.stdout.close()
            reader.stdin.close()
            time.sleep(2.0 if bench.short else 10.0)
            scene.settle()
            free, file = _free_pages(scene.server.data)
            if free > 0.1 * file and free > 256:
                raise Broken(f"of {file} pages {free} are free and not used again")
            yield Round(rate, {"pages free, of 1": free / file})


def _free_pages(data: Path) -> tuple[int, int]:
    """Pages that are free, and all, as a reader of another process sees them."""
    with lmdb.open(str(data), max_dbs=32, readonly=True, max_readers=512) as environment:
        with environment.begin() as transaction:
            used = 0
            tables = [None, *(environment.open_db(key, transaction) for key, _ in transaction.cursor())]
            for table in tables:
                stat = transaction.stat() if table is None else transaction.stat(table)
                used += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        pages = environment.info()["last_pgno"] + 1
    return pages - used, pages
