"""Fuzzes every handler: `make fuzz MINUTES=10`.

With atheris (which has wheels for CPython 3.11 to 3.13 on Linux; group `fuzz`) coverage leads the search. Without it
the same inputs are changed at random. What is found is written to `--findings`, and the search goes on; the exit status
is 1 then. `--replay FILE...` plays inputs that were found.

An input is several messages (inputs.py); they are changed by their types (mutate.py), beginning with short whole lives
under each method (seeds.py) and what earlier searches kept (corpus.txt), and played on a real store (world.py).
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import hashlib
import logging
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[3]
# Not where a test imports it: what is set there holds for all tests of its process.
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "twin")]
    # Compiled kernels are no bytecode that could be watched, and the plain ones do the same to the last bit.
    os.environ.setdefault("STEELYARD_KERNELS", "numpy")

if TYPE_CHECKING:
    from tests.robustness.fuzz.world import World

CORPUS = Path(__file__).with_name("corpus.txt")
MOST_BYTES = 1 << 14
HANG_SECONDS = 30
MEMORY_MIB = 2048
_KEPT_SHARE = 0.05
_POOL = 4000


class Search:
    """Plays inputs, one world after the other, and counts. A world that broke, or has grown old, is left."""

    def __init__(self, findings: Path) -> None:
        self.findings = findings
        self.found: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.played = 0
        self._stack = contextlib.ExitStack()
        self._world: World | None = None
        self._began = time.monotonic()

    def play(self, data: bytes) -> None:
        from tests.robustness.fuzz.world import FindingError

        self.played += 1
        if self._world is None:
            self._world = self._open()
        try:
            self._world.play(data)
        except FindingError as error:
            self._note(data, error)
        if self.played % 500 == 0:
            print(self.summary(), flush=True)

    def _note(self, data: bytes, error: Exception) -> None:
        place = self.findings / hashlib.blake2b(data, digest_size=8).hexdigest()
        self.findings.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        what = str(error)[:300]
        self.found[what.partition(":")[0]] += 1
        print(f"FOUND {place}\n{what}", flush=True)
        self.close()

    def _open(self) -> World:
        from tests.robustness.fuzz.world import World

        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        folder = self._stack.enter_context(
            tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True)
        )
        return World(Path(folder) / "data")

    def close(self) -> None:
        if self._world is not None:
            self.counts += self._world.counts
            self._world.close()
            self._world = None
        self._stack.close()

    def summary(self) -> str:
        used = resource.getrusage(resource.RUSAGE_SELF)
        calls = sum(self.counts.values()) + (sum(self._world.counts.values()) if self._world else 0)
        return (
            f"{self.played} inputs, {calls} calls and streams, {time.monotonic() - self._began:.0f} s, "
            f"{used.ru_utime + used.ru_stime:.0f} s of CPU, at most {used.ru_maxrss >> 10} MiB, "
            f"{sum(self.found.values())} findings"
        )


def corpus() -> list[bytes]:
    return [bytes.fromhex(line) for line in CORPUS.read_text().split()] if CORPUS.exists() else []


def beginnings() -> list[bytes]:
    from tests.robustness.fuzz.seeds import seeds

    return [*seeds(), *corpus()]


def at_random(search: Search, seconds: float, seed: int) -> None:
    from tests.robustness.fuzz.mutate import mutated

    first = beginnings()
    pool, dice = list(first), random.Random(seed)
    for data in first:
        search.play(data)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = mutated(dice.choice(pool), MOST_BYTES, dice.getrandbits(32), first)
        search.play(data)
        if dice.random() < _KEPT_SHARE:
            if len(pool) < _POOL:
                pool.append(data)
            else:
                pool[dice.randrange(len(first), _POOL)] = data


def by_coverage(atheris: Any, search: Search, seconds: float, seed: int, kept: Path) -> None:
    """Ends the process, as libFuzzer does: with status 1 where anything was found."""
    from tests.robustness.fuzz.mutate import mutated

    first = beginnings()
    for folder in (kept, search.findings):
        folder.mkdir(parents=True, exist_ok=True)
    for data in first:
        (kept / hashlib.blake2b(data, digest_size=8).hexdigest()).write_bytes(data)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        return mutated(data, max_size, seed, first)

    limits = f"-max_len={MOST_BYTES} -timeout={HANG_SECONDS} -rss_limit_mb={MEMORY_MIB} -max_total_time={seconds:.0f}"
    arguments = [
        sys.argv[0],
        *limits.split(),
        f"-seed={seed}",
        f"-artifact_prefix={search.findings}/",
        str(kept),
    ]
    atheris.Setup(arguments, search.play, custom_mutator=change)
    atexit.register(end, search)
    atheris.Fuzz()


def end(search: Search) -> None:
    """For what ends the process from within, with a status of its own: says what there was, and ends with 1 where
    anything was found."""
    tell(search)
    if search.found:
        sys.stdout.flush()
        os._exit(1)


def watched(names: Sequence[str]) -> Any:
    """atheris, with these packages watched from here on; None where it is not installed."""
    try:
        import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None
    with atheris.instrument_imports(include=list(names), enable_loader_override=False):
        import tests.robustness.fuzz.world  # noqa: F401
    return atheris


def tell(search: Search) -> None:
    search.close()
    for (name, code), number in sorted(search.counts.items()):
        print(f"{name:16} {code:20} {number}")
    print(search.summary(), flush=True)


@contextlib.contextmanager
def reported(search: Search) -> Iterator[None]:
    try:
        yield
    finally:
        tell(search)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=ROOT / ".cache" / "fuzz" / "findings")
    parser.add_argument("--kept", type=Path, default=ROOT / ".cache" / "fuzz" / "kept")
    parser.add_argument(
        "--random", action="store_true", help="without coverage, also where atheris is installed"
    )
    parser.add_argument("--replay", type=Path, nargs="*", default=[])
    asked = parser.parse_args(arguments)
    logging.getLogger("steelyard_server").setLevel(logging.CRITICAL + 1)
    search = Search(asked.findings)
    atheris = None if asked.random or asked.replay else watched(["steelyard_server", "steelyard"])
    with reported(search):
        if asked.replay:
            for path in asked.replay:
                search.play(path.read_bytes())
        elif atheris is None:
            at_random(search, 60 * asked.minutes, asked.seed)
        else:
            by_coverage(atheris, search, 60 * asked.minutes, asked.seed, asked.kept)
    return 1 if search.found else 0


if __name__ == "__main__":
    sys.exit(main())
