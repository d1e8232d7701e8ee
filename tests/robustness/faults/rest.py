"""Data that is damaged while no server runs: a bit flips, or the file ends early."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np
import numpy.typing as npt

import steelyard
from steelyard.errors import SteelyardError
from tests.robustness.faults.daemon import Daemon
from tests.robustness.faults.registry import Bench, Broken, Round, fault
from tests.robustness.faults.scene import Scene

SECONDS = 120
PAGE = 4096


@fault(
    "bit flipped at rest",
    how="one bit is flipped while no server runs, every other time of a key or value that the data holds, else of any "
    "byte of the file; `steelyard check`, then a start",
    bar="of keys and values 100 % found by the check, elsewhere (free pages, room between them) found or without "
    "effect; the server refuses with a message or serves what is right, and never dies of a signal",
    rounds=100,
    suite=False,
)
def flipped(bench: Bench) -> Iterator[Round]:
    yield from _damaged(bench, _flip)


@fault(
    "file cut short",
    how="the file is truncated at a random 4 KiB while no server runs; `steelyard check`, then a start",
    bar="as for a flipped bit",
    rounds=50,
    suite=False,
)
def truncated(bench: Bench) -> Iterator[Round]:
    yield from _damaged(bench, _truncate)


def _flip(bench: Bench, file: Path, number: int) -> bool:
    held = _held(file.parent)
    if number % 2:
        start, length = bench.moments.choices(held, weights=[length for _, length in held])[0]
        at = start + bench.moments.randrange(length)
    else:
        at = bench.moments.randrange(file.stat().st_size)
    with file.open("r+b") as opened:
        opened.seek(at)
        value = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([value ^ 1 << bench.moments.randrange(8)]))
    return any(start <= at < start + length for start, length in held)


def _held(data: Path) -> list[tuple[int, int]]:
    """Where in the file the keys and values are that can be read of it, and their bytes: where LMDB has them mapped."""
    found = []
    with lmdb.open(str(data), max_dbs=32, readonly=True, lock=False) as environment:
        (base,) = (
            int(line.split("-")[0], 16)
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith(f"{data / 'data.mdb'}") and line.split()[2] == "00000000"
        )
        names = []
        with environment.begin() as transaction:
            names = [bytes(name) for name, _ in transaction.cursor()]
        for name in names:
            table = environment.open_db(name, create=False)
            with environment.begin(table, buffers=True) as transaction:
                for pair in transaction.cursor():
                    for one in pair:
                        if len(one):
                            found.append((np.frombuffer(one, np.uint8).ctypes.data - base, len(one)))
    return found


def _truncate(bench: Bench, file: Path, number: int) -> bool:
    with file.open("r+b") as opened:
        opened.truncate(bench.moments.randrange(file.stat().st_size // PAGE) * PAGE)
    # Less than LMDB's pages in use: whatever is cut off of it is held.
    return True


def _damaged(bench: Bench, damage) -> Iterator[Round]:  # type: ignore[no-untyped-def]
    small = Bench(bench.folder, bench.moments, short=True)
    with Scene(small, checkpoint_interval_seconds=1) as scene:
        rate = scene.load()
        scene.settle()
        right = _answers(scene.run)
        scene.server.terminate()
    number = 0
    while True:
        number += 1
        folder = bench.folder / f"damaged-{number}"
        shutil.copytree(scene.server.data, folder / "data")
        held = damage(bench, folder / "data" / "data.mdb", number)
        found = _checked(folder / "data")
        if held and not found:
            raise Broken("what the data holds was damaged, and the check found nothing")
        refused, wrong = _served(folder, right)
        if wrong and not found:
            raise Broken(f"the check found nothing, and served was another state: {wrong}")
        if wrong:
            raise Broken(f"what the check finds was served as if it were right: {wrong}")
        yield Round(
            rate,
            {
                "of what is held": int(held),
                "elsewhere": int(not held),
                "found by the check": int(found),
                "refused by the server": int(refused),
            },
        )
        shutil.rmtree(folder)


def _checked(data: Path) -> bool:
    """Whether `steelyard check` finds damage. Broken where it dies, or says neither."""
    done = subprocess.run(
        [sys.executable, "-m", "steelyard_server", "check", "--data-dir", str(data), "--json"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        raise Broken(f"the check ended with status {done.returncode}: {done.stderr[-2000:]}")
    if done.returncode == 1 and not (done.stdout.strip() or done.stderr.strip()):
        raise Broken("the check failed and said nothing")
    return done.returncode == 1


def _served(folder: Path, right: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the server refused, to start or to answer; and what it served that is not right."""
    server = Daemon(folder)
    try:
        try:
            server.start()
        except Broken as broken:
            if server.status is None or server.status < 0 or "Traceback" in server.words():
                raise Broken(f"the server ended with status {server.status}\n{server.words()}") from broken
            return True, ""
        with steelyard.connect(server.address, timeout=30) as client:
            try:
                found = _answers(client.run("r"))
            except SteelyardError:
                if not server.alive:
                    raise Broken(f"the server ended with status {server.status}\n{server.words()}") from None
                return True, ""
        if found != right:
            return False, json.dumps([one for one in found if one not in right])[:500]
        return False, ""
    finally:
        server.end()


def _answers(run: steelyard.Run) -> tuple[str, ...]:
    """What an owner reads of it: counts, the column, batches, and the losses that examples had."""
    info = run.info()
    column: npt.NDArray[np.float32] = run.column("last_loss")
    steps = range(0, info.next_step, max(1, info.next_step // 20))
    return (
        f"{info.next_step} {info.closed_steps} {run.stats().reported_losses}",
        f"{column.tobytes().hex()[:64]} {hash(column.tobytes())}",
        *(f"{step} {run.batch(step).digest:016x}" for step in steps),
        str(run.history(range(0, 20_000, 501))),
    )
