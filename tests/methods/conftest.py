"""Numbers that the authors' own code gave, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

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
