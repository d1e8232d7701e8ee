"""The power goes: of what a server and its trainer wrote, only what was synced is certain.

The system calls of a life of a run (power/life.py) are recorded by strace, with what the trainer was told. From the
recording come the images that a cut can leave on the disk (power/images.py), at every sync; each is opened by the real
store, catalog and run (power/inspector.py), and judged by what was promised (power/judge.py). Seeds are fixed.

STEELYARD_POWER=all tries every image, the random ones with each of STEELYARD_POWER_SEEDS ("0"; others, such as "7,8",
give other random ones and no more of the rest); without it a sample.
"""

from __future__ import annotations

import collections
import functools
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.robustness.power import life, strace, trace
from tests.robustness.power.images import RANDOM, Image, images
from tests.robustness.power.inspectors import Inspector
from tests.robustness.power.judge import Judge
from tests.robustness.power.life import FIRST, SECOND, THIRD, Durability
from tests.robustness.power.lives import End, Lives, notes_of

pytestmark = [
    pytest.mark.skipif(strace.missing() is not None, reason=strace.missing() or ""),
    # They share what is recorded.
    pytest.mark.xdist_group("power cut"),
]

EVERYTHING = os.environ.get("STEELYARD_POWER") == "all"
SEEDS = [int(seed) for seed in os.environ.get("STEELYARD_POWER_SEEDS", "0").split(",")]
PER_CUT = None if EVERYTHING else 3
PER_UNSYNCED_CUT = 25
"""There are few syncs to be cut at, so there are more images of each."""
PARTS: tuple[tuple[tuple[int, int], End], ...] = ((FIRST, "close"), (SECOND, "exit"), (THIRD, "close"))
LONGEST_WAIT = 5.0
"""Seconds within which a commit under durability interval must have ended: the interval, and a slow machine."""


class Laboratory:
    """Recordings, and whoever inspects what comes of them."""

    def __init__(self, folder: Path, lives: Lives, inspector: Inspector) -> None:
        self.inspector = inspector
        self._folder = folder
        self._lives = lives

    @functools.cache  # noqa: B019 -- lives as long as the module's tests
    def recorded(self, durability: Durability, *, unsynced: bool = False) -> Sequence[trace.Event]:
        """Three lives after one another in one directory: the kernel keeps what a life that is cut off wrote."""
        folder, events = self._folder / f"{durability}-{unsynced}", list[trace.Event]()
        folder.mkdir()
        for number, (part, end) in enumerate(PARTS):
            output, directory = folder / f"trace{number}", folder / "data"
            options = strace.record(output, trace.CALLS)
            assert self._lives.live(
                directory, durability, part, end, wait="opening", strace=options, unsynced=unsynced
            )
            events += trace.read(output, directory)
            output.unlink()
        return events

    @functools.cached_property
    def calm(self) -> list[list[str]]:
        """The notes of an undisturbed life."""
        directory = self._folder / "calm"
        self._lives.finish(directory, "sync")
        return life.read_notes(notes_of(directory))

    def judge(self, events: Sequence[trace.Event], durability: Durability) -> Judge:
        """One who knows what the run went through in the recording under that durability."""
        whole = images(self.recorded(durability), 0, None, kinds=("all",))
        return Judge(events, durability, [self.inspector.inspect(image.files) for image in whole], self.calm)


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    # In memory where that can be: what is tested is the order of the calls, not this disk.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        folder = Path(name)
        with Lives(folder) as lives, Inspector(folder) as inspector:
            yield Laboratory(folder, lives, inspector)


class Tally:
    """Images by kind, and faults."""

    def __init__(self, judge: Judge, inspector: Inspector) -> None:
        self.images: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self._judge = judge
        self._inspector = inspector

    def add(self, image: Image) -> None:
        self.images[image.kind] += 1
        fault = self._judge.fault(image, self._inspector.inspect(image.files))
        if fault is not None:
            self.faults.append(f"cut during event {image.at}, {image.kind}: {fault}")

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.images.most_common())
        return f"{self.images.total()} images ({kinds}): {len(self.faults)} faults"


@pytest.mark.timeout(24 * 3600 if EVERYTHING else 300)
@pytest.mark.parametrize("durability", ["sync", "interval"])
def test_whatever_a_power_cut_leaves_holds_all_that_was_acknowledged(
    laboratory: Laboratory, durability: Durability
) -> None:
    events = laboratory.recorded(durability)
    tally = Tally(laboratory.judge(events, durability), laboratory.inspector)
    for seed in SEEDS:
        for image in images(events, seed, PER_CUT, kinds=RANDOM if seed else ("",)):
            tally.add(image)
    print(f"\n{durability}: {tally}")
    assert not tally.faults, "\n".join(tally.faults[:5])
    assert tally.images.total() > 60, f"too few images to mean anything: {tally}"


@pytest.mark.timeout(300)
def test_the_images_find_a_store_that_does_not_sync(laboratory: Laboratory) -> None:
    events = laboratory.recorded("sync", unsynced=True)
    tally = Tally(laboratory.judge(events, "sync"), laboratory.inspector)
    # The plainest ones first: nothing that was written got there.
    plain = images(events, 0, None, kinds=("none",))
    for image in itertools.chain(plain, images(events, 0, PER_UNSYNCED_CUT)):
        tally.add(image)
        missing = [
            fault for fault in ("lost", "damaged") if not any(f": {fault}" in one for one in tally.faults)
        ]
        if not missing:
            break
    print(f"\nunsynced: {tally}")
    assert not missing, f"in no image was an acknowledged event {' or '.join(missing)}"


def test_under_durability_interval_no_acknowledged_event_waits_longer_for_its_commit(
    laboratory: Laboratory,
) -> None:
    waiting: float | None = None
    for event in laboratory.recorded("interval"):
        if isinstance(event, trace.Told) and event.words[0] == "acked":
            waiting = event.time if waiting is None else waiting
            assert event.time - waiting < life.INTERVAL + LONGEST_WAIT, (
                "acknowledged, and not committed since"
            )
        elif isinstance(event, trace.Wrote) and event.through:
            waiting = None
