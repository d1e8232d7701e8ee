"""The power of a whole machine goes: a kernel of its own (user-mode-linux), with a file system of its own, is killed.

Each round boots it on the disk image that the cut before has left. ext4 replays its journal; what is on the disk then
is copied out and compared, record by record, with all that the store may hold; the store goes on, says of each record
that it is durable, and is cut off with its kernel at a random moment: what its page cache held is gone. Inside is the
store with its journal; a server is left out, whose imports take 12 s there.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from steelyard_server.history.codec import encode
from steelyard_server.history.journal import Journal
from steelyard_server.history.store import Store
from tests.robustness.faults.outcome import ROOT
from tests.robustness.faults.registry import Bench, Broken, CannotBeTried, Round, fault

PROGRAM = ROOT / "tests" / "robustness" / "programs" / "append_until_killed.py"
RUN = 3
LEAST = 200
"""Records that were said to be durable before the power goes."""
MOST = 15_000
"""Records on one disk: there must be room for them, and they are all read after each cut."""
SECONDS = 90.0
INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t tmpfs tmpfs /dev/shm
mount -t ext4 /dev/ubda {mount} || exit 1
mkdir -p {mount}/data
rm -rf {copy}
cp -r {mount}/data {copy}
sync
echo copied
export PYTHONPATH={path}
exec {python} {program} {mount}/data sync
"""


@fault(
    "power cut",
    how="kill -9 of a user-mode-linux kernel whose ext4 holds the store; its journal is replayed at the next boot",
    bar="every record that was said to be durable is there, and every record is the one that was written",
    rounds=100,
    suite=False,
)
def power_cut(bench: Bench) -> Iterator[Round]:
    for tool in ("linux.uml", "mkfs.ext4"):
        if shutil.which(tool) is None:
            raise CannotBeTried(f"there is no {tool} (Debian: user-mode-linux, e2fsprogs)")
    for number in range(1000):
        folder = bench.folder / str(number)
        folder.mkdir()
        yield from _one_disk(bench, folder)
        shutil.rmtree(folder)


def _one_disk(bench: Bench, folder: Path) -> Iterator[Round]:
    """Cuts, as long as the disk has room."""
    machine = _Machine(folder)
    durable = 0
    try:
        machine.boot()
        machine.await_line("copied")
        while durable < MOST:
            said = machine.cut_off(durable, bench.moments.uniform(0, 0.5))
            machine.boot()
            machine.await_line("copied")
            beyond = _check(folder / "copy", durable + said)
            durable += said + beyond
            yield Round(None, {"records said durable": said, "records beyond them": beyond})
    finally:
        machine.off()


class _Machine:
    """Made of one disk image; `boot` after `cut_off`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._disk = folder, folder / "disk"
        mount = folder / "mount"
        mount.mkdir()
        with self._disk.open("wb") as file:
            file.truncate(2 << 30)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self._disk)], check=True)
        init = folder / "init"
        init.write_text(
            INIT.format(
                mount=mount,
                copy=folder / "copy",
                path=os.pathsep.join(path for path in sys.path if path),
                python=sys.executable,
                program=PROGRAM,
            )
        )
        init.chmod(0o755)
        self._init = init
        self._process: subprocess.Popen[str]
        self._said: queue.SimpleQueue[str | None]

    def boot(self) -> None:
        command = [
            "linux.uml",
            "mem=512M",
            f"ubd0={self._disk}",
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
        ]
        self._process = subprocess.Popen(
            [*command, "rw", f"init={self._init}", "con0=fd:0,fd:1", "con=null", "quiet"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._said = queue.SimpleQueue()
        threading.Thread(target=self._hear, args=(self._process, self._said), daemon=True).start()

    def _hear(self, process: subprocess.Popen[str], said: queue.SimpleQueue[str | None]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError):  # closed under it
            for line in process.stdout:
                said.put(line.strip())
        said.put(None)

    def await_line(self, pattern: str) -> str:
        heard: list[str] = []
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                line = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                self.off()
                raise Broken(f"the machine did not say {pattern!r}: {heard[-10:]}")
            if re.fullmatch(pattern, line):
                return line
            heard.append(line)

    def cut_off(self, durable: int, later: float) -> int:
        """Cuts it off, so many seconds after enough is durable; how many records it said were, beyond `durable`."""
        try:
            for number in range(durable, durable + LEAST):
                said = int(self.await_line(r"\d+"))
                if said != number:
                    raise Broken(f"record {said} was said to be durable where {number} was next")
            time.sleep(later)
        finally:
            self.off()
        count = LEAST
        while (line := self._said.get(timeout=SECONDS)) is not None:
            count += bool(re.fullmatch(r"\d+", line))
        return count

    def off(self) -> None:
        """kill -9 of every process that the machine is made of, and of no other: by its disk in their command lines."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if f"ubd0={self._disk}".encode() in entry.read_bytes().split(b"\0"):
                    os.kill(int(entry.parent.name), signal.SIGKILL)
        self._process.wait(30)


def _check(directory: Path, durable: int) -> int:
    """Broken where a record is missing or another; how many there are beyond `durable`."""
    event_at = _event_at()
    store = Store.open(directory)
    try:
        journal = Journal(store, RUN)
        if journal.next_seq < durable:
            raise Broken(f"{durable} records were said to be durable, and {journal.next_seq} are there")
        for seq, event in journal.read(0, journal.next_seq):
            if encode(event) != encode(event_at(seq)):
                raise Broken(f"record {seq} is not the one that was written")
        return journal.next_seq - durable
    finally:
        store.close()


def _event_at():  # type: ignore[no-untyped-def]
    sys.path.insert(0, str(PROGRAM.parent))
    try:
        from append_until_killed import event_at  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(PROGRAM.parent))
    return event_at
