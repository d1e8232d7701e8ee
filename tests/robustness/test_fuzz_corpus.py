"""What the fuzzer begins with and has kept, played on a real store; and that it finds what is wrong.

`make fuzz` searches further.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import steelyard.v1
from steelyard.v1 import datasets_pb2, trainer_pb2
from steelyard_server.service.datasets import DatasetService
from steelyard_server.service.edge import SERVICES
from tests.robustness.fuzz import run, seeds
from tests.robustness.fuzz.inputs import CALLS, call, packed, unpacked
from tests.robustness.fuzz.mutate import mutated
from tests.robustness.fuzz.world import BYSTANDER, FindingError, World

pytestmark = pytest.mark.xdist_group("fuzz")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The fuzzer silences the server's log in its process; the tests that follow here read it."""
    log = logging.getLogger("steelyard_server")
    before = log.level
    # Not by the attribute: loggers remember what is enabled.
    log.setLevel(logging.CRITICAL + 1)
    yield
    log.setLevel(before)


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Callable[[], World]]:
    made: list[World] = []

    def make() -> World:
        made.append(World(tmp_path / str(len(made))))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(worlds: Callable[[], World]) -> World:
    return worlds()


def test_what_the_fuzzer_has_kept_breaks_nothing(world):
    for data in run.beginnings():
        world.play(data)
    answered = {name for name, code in world.counts if code == "OK"}
    assert answered == {name for name, _ in CALLS} | {"Train"}


def test_inputs_changed_at_random_break_nothing(world):
    first = run.beginnings()
    for number in range(60):
        world.play(mutated(first[number % len(first)], run.MOST_BYTES, number, first))


def test_every_call_of_the_services_is_fuzzed():
    names = [one.name for one in pkgutil.iter_modules(steelyard.v1.__path__) if one.name.endswith("_pb2")]
    files = [importlib.import_module(f"steelyard.v1.{name}").DESCRIPTOR for name in names]
    services = [service for file in files for service in file.services_by_name.values()]
    assert {service.full_name for service in services} == set(SERVICES)
    expected = {(one.name, one.input_type.full_name) for service in services for one in service.methods}
    trains = ("Train", trainer_pb2.TrainRequest.DESCRIPTOR.full_name)
    assert {(name, kind.DESCRIPTOR.full_name) for name, kind in CALLS} | {trains} == expected


def test_any_bytes_are_an_input_and_packing_keeps_it():
    dice = np.random.default_rng(1)
    for size in range(200):
        items = unpacked(dice.bytes(size))
        assert unpacked(packed(items)) == items


def test_a_handler_that_raises_what_is_in_no_table_is_found(worlds, monkeypatch):
    def broken(self, request):
        raise OverflowError("planted")

    monkeypatch.setattr(DatasetService, "GetDataset", broken)
    with pytest.raises(FindingError, match="GetDataset was answered INTERNAL.*planted"):
        worlds().play(packed([call("GetDataset", datasets_pb2.GetDatasetRequest(name="d"))]))


def test_a_run_that_is_not_the_fold_of_its_journal_is_found(world):
    world.play(list(seeds.seeds())[1])

    def spoil(state):
        state.examples.columns["last_loss"][:] = 7

    world.catalog.run("r").ask(spoil)
    with pytest.raises(FindingError, match="'r' is not the fold of its journal"):
        world.judge()


def test_a_run_that_nobody_named_and_that_differs_from_the_twin_is_found(world):
    world.judge()
    world.catalog.change_policy(BYSTANDER, {"method": "shuffle"}, None)
    world.judge()  # what was drawn before the change
    with pytest.raises(FindingError, match="nobody named differs from the twin"):
        world.judge()


@pytest.mark.parametrize("broken", [True, False])
def test_the_exit_status_says_whether_anything_was_found(broken, tmp_path, monkeypatch):
    file = tmp_path / "input"
    file.write_bytes(packed([call("GetDataset", datasets_pb2.GetDatasetRequest(name="d"))]))
    if broken:
        monkeypatch.setattr(DatasetService, "GetDataset", lambda self, request: 1 // 0)
    assert run.main(["--replay", str(file), "--findings", str(tmp_path / "findings")]) == int(broken)


@pytest.mark.parametrize("found", [1, 0])
def test_so_it_does_where_the_search_ends_the_process_with_a_status_of_its_own(found, tmp_path):
    """As libFuzzer does, from within atheris."""
    program = (
        "import atexit, pathlib, sys; from tests.robustness.fuzz import run\n"
        f"search = run.Search(pathlib.Path({str(tmp_path)!r}))\n"
        f"search.found.update({['finding'] * found})\n"
        "atexit.register(run.end, search); sys.exit(0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=run.ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == found, ended.stderr
    assert f"{found} findings" in ended.stdout
