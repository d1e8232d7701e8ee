"""Prometheus and promtool as `make promtool` unpacks them, or as they are in the PATH."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
_UNPACKED = ROOT / ".venv" / "promtool" / "usr" / "bin"


def tool(name: str) -> str:
    """Where `name` (promtool, prometheus) is. A test that needs it fails in CI without it, and is skipped elsewhere."""
    found = shutil.which(name, path=f"{_UNPACKED}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        missing = f"{name} was found neither in the PATH nor in {_UNPACKED}: `make promtool` unpacks it there"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    return found


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
