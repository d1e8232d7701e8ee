"""The wheels of before, unpacked beside each other."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

WHEELS = sorted((Path(__file__).parent / "wheels").glob("*.whl"))


@pytest.fixture(scope="session", params=WHEELS, ids=lambda wheel: wheel.name.split("-")[1])
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a process is of an older version, of client and server alike."""
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(request.param) as wheel:
        wheel.extractall(folder)
    return {**os.environ, "PYTHONPATH": str(folder)}
