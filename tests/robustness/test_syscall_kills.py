"""kill -9 and errors of the disk at one exact system call after the other, of a server with its trainer.

A life of a run (power/life.py) is repeated under strace, which kills it on entering the n-th call of a kind, n going up
until the life is too short to have so many. What was acknowledged must be there, and the life that goes on must end as
an undisturbed one does. STEELYARD_POWER=all takes every n of every call; without it some are left out, and which is
fixed.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.robustness.power import life, strace
from tests.robustness.power.life import ALL, FIRST, SECOND, THIRD, BrokenPromiseError, Durability
from tests.robustness.power.lives import Lives, Wait, notes_of

pytestmark = pytest.mark.skipif(strace.missing() is not None, reason=strace.missing() or "")

EVERYTHING = os.environ.get("STEELYARD_POWER") == "all"
MOST = 5000
"""More calls of a kind than any life makes: a search that gets there would never end."""

# Where it is killed; the call; and how many calls are left out between two kills, for CI.
KILLS: list[tuple[Wait, Durability, str, int]] = [
    ("serving", "sync", "fdatasync", 3),
    ("serving", "sync", "pwrite64", 17),
    ("serving", "sync", "writev", 9),
    ("serving", "sync", "munmap", 7),
    ("serving", "sync", "sendmsg", 31),
    ("serving", "sync", "futex", 400),
    ("serving", "interval", "fdatasync", 3),
    ("serving", "interval", "pwrite64", 19),
    ("serving", "interval", "writev", 11),
    ("serving", "interval", "ftruncate", 2),
]
ERRORS: list[tuple[Durability, str, str, int]] = [
    ("sync", "fdatasync", "EIO", 9),
    ("sync", "pwrite64", "EIO", 41),
    ("sync", "writev", "ENOSPC", 15),
    ("interval", "fdatasync", "EIO", 9),
    ("interval", "pwrite64", "ENOSPC", 29),
    ("interval", "ftruncate", "EIO", 4),
]
OPENING = {
    "openat": 80,
    "mmap": 50,
    "flock": 1,
    "pwrite64": 1,
    "writev": 1,
    "fdatasync": 1,
    "fsync": 1,
    "ftruncate": 1,
    "rename": 1,
    "unlink": 1,
}


class Calm:
    """Undisturbed lives to compare with, and what they leave for a later life to begin with."""

    def __init__(self, lives: Lives, folder: Path) -> None:
        self._lives = lives
        self.directory = folder / "calm"
        self.outcome = lives.finish(self.directory, "sync")
        self.notes = life.read_notes(notes_of(self.directory))
        self._cut_off: dict[Durability, Path] = {}
        self._folder = folder

    def cut_off(self, durability: Durability) -> Path:
        """A life that was cut off in its second part, without a drain: there is something to recover."""
        if durability not in self._cut_off:
            directory = self._folder / f"cut-off-{durability}"
            assert self._lives.live(directory, durability, FIRST, "close")
            assert self._lives.live(directory, durability, SECOND, "exit")
            self._cut_off[durability] = directory
        return self._cut_off[durability]


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    with Lives(tmp_path_factory.mktemp("lives")) as lives:
        yield lives


@pytest.fixture(scope="module")
def calm(lives: Lives, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    return Calm(lives, tmp_path_factory.mktemp("calm"))


def check_ends_calmly(lives: Lives, calm: Calm, directory: Path, durability: Durability) -> None:
    found = lives.finish(directory, durability)
    life.check_served(life.read_notes(notes_of(directory)), calm.notes)
    if found != calm.outcome:
        missing = [event for event in calm.outcome.events if event not in found.events]
        added = [event for event in found.events if event not in calm.outcome.events]
        raise BrokenPromiseError(f"missing: {missing}; added: {added}; {len(found.events)} events")


def numbers(stride: int) -> Iterator[int]:
    return itertools.count(1, 1 if EVERYTHING else stride)


def copied(source: Path, directory: Path) -> Path:
    shutil.copytree(source, directory)
    shutil.copy(notes_of(source), notes_of(directory))
    return directory


def forget(directory: Path) -> None:
    shutil.rmtree(directory)
    for path in directory.parent.glob(f"{directory.name}.*"):
        path.unlink()


@pytest.mark.timeout(3600 if EVERYTHING else 300)
@pytest.mark.parametrize(("wait", "durability", "call", "stride"), KILLS, ids=lambda value: str(value))
def test_killed_on_entering_any_system_call_a_run_goes_on_as_if_nothing_had_been(
    lives: Lives, calm: Calm, tmp_path: Path, wait: Wait, durability: Durability, call: str, stride: int
) -> None:
    kills = 0
    for number in numbers(stride):
        directory = tmp_path / str(number)
        disturbed = strace.inject(tmp_path / "strace", call, "signal=KILL", str(number))
        if lives.live(directory, durability, ALL, "close", wait=wait, strace=disturbed):
            break
        kills += 1
        try:
            check_ends_calmly(lives, calm, directory, durability)
        except BrokenPromiseError as broken:
            raise AssertionError(f"killed on entering {call} number {number}: {broken}") from broken
        forget(directory)
        assert number < MOST, "no life makes so many calls"
    assert kills, f"the life made no {call}: nothing was tested"
    print(f"{kills} kills on {call}, durability {durability}")


@pytest.mark.timeout(3600 if EVERYTHING else 300)
@pytest.mark.parametrize("durability", ["sync", "interval"])
@pytest.mark.parametrize("cut_off", [False, True], ids=["creation", "recovery"])
def test_killed_while_it_opens_a_server_opens_the_next_time(
    lives: Lives, calm: Calm, tmp_path: Path, durability: Durability, cut_off: bool
) -> None:
    kills = 0
    for call, stride in OPENING.items():
        for number in numbers(stride):
            directory = tmp_path / f"{call}-{number}"
            if cut_off:
                copied(calm.cut_off(durability), directory)
            disturbed = strace.inject(tmp_path / "strace", call, "signal=KILL", str(number))
            part = (THIRD[0], THIRD[0]) if cut_off else (0, 0)
            if lives.live(directory, durability, part, "exit", wait="opening", strace=disturbed):
                break
            kills += 1
            try:
                check_ends_calmly(lives, calm, directory, durability)
            except BrokenPromiseError as broken:
                raise AssertionError(f"killed on entering {call} number {number}: {broken}") from broken
            forget(directory)
    assert kills >= 5, f"only {kills} kills: the server opens otherwise than it did"
    print(f"{kills} kills while opening, durability {durability}")


@pytest.mark.timeout(3600 if EVERYTHING else 300)
@pytest.mark.parametrize(("durability", "call", "error", "stride"), ERRORS, ids=lambda value: str(value))
def test_after_an_error_of_the_disk_nothing_is_acknowledged_that_is_not_there(
    lives: Lives, calm: Calm, tmp_path: Path, durability: Durability, call: str, error: str, stride: int
) -> None:
    errors = 0
    for number in numbers(stride):
        directory = tmp_path / str(number)
        written = tmp_path / "strace"
        disturbed = strace.inject(written, call, f"error={error}", str(number))
        lives.live(directory, durability, ALL, "exit", patient=True, wait="serving", strace=disturbed)
        if not strace.injected(written):
            break
        try:
            check_ends_calmly(lives, calm, directory, durability)
        except BrokenPromiseError as broken:
            raise AssertionError(f"{error} from {call} number {number}: {broken}") from broken
        forget(directory)
        errors += 1
        assert number < MOST, "no life makes so many calls"
    assert errors, f"the life made no {call}: nothing was tested"
    print(f"{errors} times {error} from {call}, durability {durability}")
