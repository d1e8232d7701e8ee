"""What holds for every test: examples are the same on every run, and no time limit hangs on a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

import steelyard  # noqa: F401 -- before any test imports gRPC: see steelyard.forking

settings.register_profile("house", derandomize=True, database=None, deadline=None, print_blob=True)
settings.load_profile("house")


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Waits until a question is answered with something true; the answer."""

    def wait_for(question: Callable[[], Any], seconds: float = 30.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (answer := question()):
            assert time.monotonic() < deadline, f"still {answer!r} after {seconds} s"
            time.sleep(0.02)
        return answer

    return wait_for
