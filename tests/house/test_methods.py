"""The table of methods is complete and is what the methods say; nothing in it is missing behind it."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steelyard_server.catalogue import Entry, entries
from steelyard_server.plugins import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "tests" / "methods" / "page.py"


def missing(entry: Entry, root: Path = ROOT) -> list[str]:
    """What a method has to have and has not."""
    name = f"{entry.family} {entry.name}"
    needed = {
        "a summary": entry.summary,
        "the paper that it is from": entry.paper,
        "the place in the paper or in its authors' code": entry.where,
        "what examples that were never reported get": entry.never_reported,
        "a formula and its traps at the head of its file": inspect.getdoc(inspect.getmodule(entry.method)),
    }
    found = [f"{name}: {what}" for what, text in needed.items() if not text]
    found += [f"{name}: a line below {one.name}" for one in entry.parameters if not one.doc]
    test = root / "tests" / "methods" / entry.family / f"test_{entry.name}.py"
    if not test.is_file() or "def test_" not in test.read_text(encoding="utf-8"):
        found.append(f"{name}: tests in {test.relative_to(root)}")
    return found


def test_no_method_lacks_a_source_a_word_on_what_was_never_reported_or_a_test() -> None:
    methods = entries()
    assert {entry.family for entry in methods} == {"draw", "mix", "weigh"}
    assert [fault for entry in methods for fault in missing(entry)] == []


def test_no_test_of_a_method_is_left_without_its_method() -> None:
    known = {(entry.family, f"test_{entry.name}.py") for entry in entries()}
    folders = [ROOT / "tests" / "methods" / family.family for family in FAMILIES]
    tests = {(path.parent.name, path.name) for folder in folders for path in folder.glob("test_*.py")}
    assert tests - known == set()


@pytest.mark.parametrize("part", ["paper", "where", "never_reported", "summary"])
def test_a_method_that_lacks_something_is_seen(part: str) -> None:
    whole = entries("mix")[0]
    changed: dict[str, Any] = {part: ""}
    assert len(missing(dataclasses.replace(whole, **changed))) == len(missing(whole)) + 1


def test_a_method_without_a_test_or_a_line_on_a_parameter_is_seen(tmp_path: Path) -> None:
    whole = next(entry for entry in entries("mix") if entry.parameters)
    bare = tuple(dataclasses.replace(parameter, doc="") for parameter in whole.parameters)
    faults = missing(dataclasses.replace(whole, parameters=bare), tmp_path)
    assert f"mix {whole.name}: a line below {bare[0].name}" in faults
    assert f"mix {whole.name}: tests in tests/methods/mix/test_{whole.name}.py" in faults


def page(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PAGE), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_page_of_methods_is_fresh() -> None:
    done = page("--check")
    assert done.returncode == 0, done.stderr


def test_a_page_that_is_stale_or_missing_is_seen(tmp_path: Path) -> None:
    other = tmp_path / "METHODS.md"
    assert page("--check", "--to", str(other)).returncode == 1
    assert page("--to", str(other)).returncode == 0
    assert page("--check", "--to", str(other)).returncode == 0
    other.write_text(other.read_text().replace("| weigh |", "| wiegh |", 1))
    assert page("--check", "--to", str(other)).returncode == 1


def test_every_link_of_the_page_leads_somewhere(tmp_path: Path) -> None:
    other = tmp_path / "METHODS.md"
    assert page("--to", str(other)).returncode == 0
    text = other.read_text()
    for entry in entries():
        assert f"](#{entry.family}-{entry.name})" in text
        assert f"\n## {entry.family} {entry.name}\n" in text
        assert f"/{Path(inspect.getfile(entry.method)).name})" in text
