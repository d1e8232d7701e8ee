"""A server begins with the kernels in NumPy and takes over the compiled ones when they are ready.

Where they are kept already, that is half a second after it answers. Where not, a child process compiles them, so that
neither the interpreter lock nor a thread of the server stands still for it. Answers are the same bits before and after.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from steelyard_server import kernel_cache
from steelyard_server.core import kernels
from steelyard_server.core.kernels import plain
from steelyard_server.log import logger

_COMPILE_SECONDS = 600.0
_POLL_SECONDS = 0.05
_FORK_SECONDS = 20.0

_log = logger(__name__)
_one_at_a_time = threading.Lock()
_given_up: list[str] = []
"""Why this process stays with NumPy: said once, however many servers it starts."""


class NoCompiledKernelsError(OSError):
    """Compiled kernels cannot be had on this machine; the message says why."""


class DamagedKernelsError(NoCompiledKernelsError):
    """Those that were kept cannot be loaded."""


class Takeover:
    """Brings the compiled kernels into this process, on a thread of its own; once for all servers in it."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._child: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name="kernels", daemon=True)

    def start(self) -> None:
        """Returns at once. Where it cannot be done, one warning says why."""
        self._thread.start()

    def stop(self) -> None:
        """Ends a child that compiles, and soon the rest; returns at once. What was taken over stays."""
        self._stopped.set()
        child = self._child
        if child is not None:
            child.kill()

    def wait(self, seconds: float) -> bool:
        """Whether its thread has ended within `seconds`. One that loads just then takes half a second."""
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def finish(self) -> None:
        """Does it on the caller's thread, instead of `start`. NoCompiledKernelsError where it cannot be done."""
        deadline = time.monotonic() + _COMPILE_SECONDS
        # The one before may compile for long, which is no reason to outlive a stop.
        while not _one_at_a_time.acquire(timeout=_POLL_SECONDS):
            if self._stopped.is_set():
                return
            if time.monotonic() > deadline:
                raise NoCompiledKernelsError(
                    f"another server of this process took them over for more than {_COMPILE_SECONDS:g} s"
                )
        try:
            if kernels.active is plain:
                self._take_over()
        finally:
            _one_at_a_time.release()

    def _take_over(self) -> None:
        start = time.monotonic()
        try:
            kept = self._compile_and_load()
        except DamagedKernelsError as error:
            place = _place()
            _log.warning("kernels_compiled_again", folder=str(place), why=str(error))
            kernel_cache.discard(place)
            kept = self._compile_and_load()
        if not self._stopped.is_set():
            _log.info("kernels_taken_over", seconds=round(time.monotonic() - start, 2), from_cache=kept)

    def _compile_and_load(self) -> bool:
        """Whether nothing had to be compiled."""
        with _loading:
            place = _place()
        compiled = self._compile(place)
        if not self._stopped.is_set():
            with _loading:
                _load(place)
        return not compiled

    def _run(self) -> None:
        if _given_up:
            return
        try:
            self.finish()
        except NoCompiledKernelsError as error:
            if not _given_up:
                _given_up.append(str(error))
                _log.warning("kernels_stay_in_numpy", why=str(error))

    def _compile(self, place: Path) -> bool:
        """Whether a child had to compile."""
        if kernel_cache.is_complete(place):
            return False
        _log.info("kernels_compiling", folder=str(place), note="batches are drawn by NumPy until then")
        deadline = time.monotonic() + _COMPILE_SECONDS
        with _compiling() as child:
            self._child = child
            while True:
                try:
                    _, said = child.communicate(timeout=_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    late = time.monotonic() > deadline
                    if not late and not self._stopped.is_set():
                        continue
                    child.kill()
                    child.communicate()
                    if late:
                        raise NoCompiledKernelsError(
                            f"compiling took more than {_COMPILE_SECONDS:g} s"
                        ) from None
                    return False
        if self._stopped.is_set():
            return False
        if child.returncode:
            lines = said.strip().splitlines() or [f"the compiling process exited with {child.returncode}"]
            raise NoCompiledKernelsError(lines[-1])
        return True


_loading = threading.RLock()
"""Held while modules are imported. A process forked meanwhile, as a loader's workers are, could never import them: it
would wait for a thread that it does not have. So a fork waits for the import, _FORK_SECONDS at most."""
_forking = threading.local()


def _before_fork() -> None:
    _forking.holds = _loading.acquire(timeout=_FORK_SECONDS)


def _after_fork() -> None:
    if _forking.holds:
        _loading.release()


def _after_fork_in_child() -> None:
    global _loading
    _loading = threading.RLock()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


def _compiling() -> subprocess.Popen[str]:
    """A child that compiles into the folder of this process, and ends with it."""
    if not sys.executable:
        raise NoCompiledKernelsError("this process does not know its interpreter, which could compile them")
    command = [sys.executable, "-P", "-m", kernel_cache.__name__, "--for", str(os.getpid())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        return subprocess.Popen(  # noqa: S603 -- this interpreter, and a module of our own
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        raise NoCompiledKernelsError(f"no process that compiles could be started: {error}") from error


def _place() -> Path:
    try:
        return kernel_cache.folder()
    except (OSError, ImportError) as error:
        raise NoCompiledKernelsError(str(error)) from error


def _load(place: Path) -> None:
    try:
        kernel_cache.load(place)
    except (ImportError, RuntimeError) as error:
        raise NoCompiledKernelsError(f"{type(error).__name__}: {error}") from error
    except Exception as error:
        # Whatever numba or LLVM object to on this machine: NumPy does the same.
        raise DamagedKernelsError(f"{type(error).__name__}: {error}") from error
