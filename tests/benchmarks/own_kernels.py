"""The kernels that a server draws with: in a process that is no server, and when a server has them."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path

from steelyard.testing import ServerProcess
from steelyard_server import kernel_cache

_WAIT_SECONDS = 300.0
_LOOK_SECONDS = 0.05
_SETTLED = (b"kernels_taken_over", b"kernels_stay_in_numpy")
"""What a server writes to its log once it knows."""


def wait_for(server: ServerProcess, *, behind: int = 0) -> None:
    """Until the server goes on with the kernels that it will keep. It answers before that, and while it loads them its
    threads stand still for moments, which belong to its start. `behind`: bytes of its log that earlier lives wrote.
    RuntimeError where it takes too long."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while not any(word in _log(server).read_bytes()[behind:] for word in _SETTLED):
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"expected the server to take over kernels within {_WAIT_SECONDS:g} s: {_log(server)}"
            )
        time.sleep(_LOOK_SECONDS)


def logged(server: ServerProcess) -> int:
    """Bytes of its log."""
    return _log(server).stat().st_size


def _log(server: ServerProcess) -> Path:
    return server.directory / "server.log"


def take() -> str:
    """From here on this process draws as a server does once it has its kernels. Which they are, for the reader:
    numba's, or NumPy's where those cannot be had, with the reason."""
    try:
        kernel_cache.load(kernel_cache.folder())
    except (ImportError, OSError, RuntimeError) as error:
        return f"NumPy kernels ({error})"
    return f"kernels compiled by numba {version('numba')}"
