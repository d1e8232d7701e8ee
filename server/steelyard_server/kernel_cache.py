"""Where compiled kernels are kept, and how a process gets them.

    python -m steelyard_server.kernel_cache

compiles what is not kept yet, which takes some seconds; a process that finds it done loads it in half a second. What
is kept depends on all that it was made from: each set of sources, versions and processor has a folder of its own, so
none is ever stale. Processes may compile into the same folder at once: numba replaces whole files.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from steelyard_server.core import kernels

_COMPLETE = "complete"
_POLL_SECONDS = 0.2
_SOURCES = Path(kernels.__file__).parents[1]
_SHARED = f"steelyard-kernels-{os.getuid()}"
"""The folder among temporary files, where others may have made one of that name."""


def folder() -> Path:
    """The folder for the kernels of this code on this machine: the first that can be written of $NUMBA_CACHE_DIR,
    beside the code, in the user's cache, among temporary files, and in shared memory. OSError where there is none.

    numba takes nothing from a folder that it cannot write. So where an earlier one of these is complete and may only
    be read, as in an image, what it holds is copied: some milliseconds in place of ten seconds of compiling.
    """
    name = _fingerprint()
    refused: OSError | None = None
    kept: Path | None = None
    for base in _bases():
        place = base / name
        shared = base.name == _SHARED
        try:
            if shared:
                _make_private(base)
            new = _make(place)
            with tempfile.TemporaryFile(dir=place):
                # One that was there was discarded, or somebody compiles into it.
                if new and kept is not None:
                    _copy(kept, place)
                return place
        except OSError as error:
            refused = error
            # What lies in a folder that others made among temporary files would be run.
            if kept is None and not shared and is_complete(place):
                kept = place
    raise OSError(f"no folder for compiled kernels can be written: {refused}")


def is_complete(place: Path) -> bool:
    """Whether all kernels have been compiled into the folder, and are there still."""
    try:
        names = (place / _COMPLETE).read_text(encoding="utf-8").splitlines()
        return bool(names) and all((place / name).is_file() for name in names)
    except OSError:
        return False


def discard(place: Path) -> None:
    """Removes what is kept in the folder: it cannot be loaded. The empty folder tells that a copy will not do."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)


def load(place: Path) -> None:
    """Takes the compiled kernels from the folder, and uses them from here on; compiles what is not there, with the
    interpreter lock held. ImportError without numba, RuntimeError where they do not do what NumPy does."""
    from numba.core import config

    before, config.CACHE_DIR = config.CACHE_DIR, str(place)
    try:
        kernels.use(kernels.load())
    finally:
        config.CACHE_DIR = before
    if not is_complete(place):
        kept = sorted(path.relative_to(place).as_posix() for path in place.rglob("*.nb[ic]"))
        new = place / f"{_COMPLETE}.{os.getpid()}"
        new.write_text("\n".join(kept), encoding="utf-8")
        new.replace(place / _COMPLETE)


def _bases() -> Iterator[Path]:
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(given)
    yield _SOURCES / "kernels" / "__pycache__"
    if cache := _user_cache():
        yield cache / "steelyard" / "kernels"
    try:
        yield Path(tempfile.gettempdir()) / _SHARED
    except FileNotFoundError:
        # Nothing temporary can be written. A container has shared memory even where all else is read-only.
        yield Path("/dev/shm") / _SHARED  # noqa: S108 -- made private, as the one before it


def _user_cache() -> Path | None:
    """None for a user who has no home, as in some containers."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def _make(place: Path) -> bool:
    """Whether the folder was not there before."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.mkdir()
    except FileExistsError:
        return False
    return True


def _copy(kept: Path, place: Path) -> None:
    """The kernels of one folder into another; what makes it complete comes last."""
    names = (kept / _COMPLETE).read_text(encoding="utf-8").splitlines()
    for name in [*names, _COMPLETE]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        draft = place / f"{name}.{os.getpid()}"
        shutil.copyfile(kept / name, draft)
        draft.replace(place / name)


def _make_private(base: Path) -> None:
    """A folder that nobody else can write. OSError where somebody else made it: what lies there would be run."""
    base.mkdir(mode=0o700, exist_ok=True)
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{base} belongs to somebody else, or others can write it")


def _fingerprint() -> str:
    """Of all that compiled code follows from, and of what numba knows a source by: its path and its last change."""
    digest = hashlib.blake2b(digest_size=10)
    for source in [_SOURCES / "exact.py", *sorted((_SOURCES / "kernels").rglob("*.py"))]:
        digest.update(repr((str(source), source.stat().st_mtime_ns)).encode())
        digest.update(source.read_bytes())
    versions = [metadata.version(package) for package in ("numba", "llvmlite", "numpy")]
    digest.update(repr([sys.version, *versions, platform.machine(), _processor()]).encode())
    return digest.hexdigest()


def _processor() -> str:
    """What tells a processor from others that run other instructions; the one that numba is told to compile for,
    where it is, so that an image may hold kernels for whatever machine it is started on."""
    if given := os.environ.get("NUMBA_CPU_NAME"):
        return f"{given} {os.environ.get('NUMBA_CPU_FEATURES', '')}"
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            first = [next(lines, "") for _ in range(40)]
    except OSError:
        return platform.processor()
    return "".join(line for line in first if line.startswith(("model name", "flags", "Features", "CPU")))


def main() -> None:
    """`--for PID`: ends without a word where that process, which began this one, has ended."""
    start = time.monotonic()
    if sys.argv[1:2] == ["--for"]:
        threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    place = folder()
    if is_complete(place):
        return
    load(place)
    print(f"compiled the kernels in {time.monotonic() - start:.1f} s into {place}")  # noqa: T201 -- a command speaks


def _end_with(parent: int) -> None:
    """A server that is killed again and again would else leave a compiler behind each time, all at work at once."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
