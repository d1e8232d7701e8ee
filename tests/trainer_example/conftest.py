"""The example is a folder of scripts that import each other by their bare names."""

import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "trainer_example"
sys.path.insert(0, str(EXAMPLE))


@pytest.fixture
def example() -> Path:
    return EXAMPLE
