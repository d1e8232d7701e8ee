"""Numbers that the authors' own code gave, by name; and packages with methods of their own, installed for one test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from steelyard.testing import method_contract  # noqa: F401 -- a fixture
from steelyard_server.plugins import FAMILIES

_FILE = Path(__file__).resolve().parents[1] / "golden" / "goldens.json"


@cache
def _all() -> dict[str, Any]:
    goldens: dict[str, Any] = json.loads(_FILE.read_text())
    return goldens


@pytest.fixture
def golden() -> Callable[[str], Any]:
    """golden(name): what stands under that name."""

    def by_name(name: str) -> Any:
        return _all()[name]

    return by_name


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """install(module, source, {entry point: object}): an installed package, gone again when the test ends."""
    folder = tmp_path / "site"
    modules: list[str] = []
    names: list[str] = []

    def write(module: str, source: str, entries: Mapping[str, str]) -> None:
        info = folder / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[steelyard.methods]", *lines, ""]))
        monkeypatch.syspath_prepend(folder)
        modules.append(module)
        names.extend(entries)

    yield write
    for module in modules:
        sys.modules.pop(module, None)
    for family in FAMILIES:
        for name in names:
            family.forget(name)
