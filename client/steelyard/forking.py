"""What a forked process may still do: gRPC does not survive a fork, so nothing here uses it after one.

A fork copies gRPC's state without its threads. Using it in the child then works most of the time and otherwise
hangs or aborts, while the parent streams every few children. So a child forked from a process that
has used gRPC is refused it at once, with an error that says what to do; children started by spawn or forkserver, and
children forked before gRPC's first use, are free.

The parent needs care too. gRPC's own fork handlers try to make a child usable; while streams are open they abort the
child or stand still in the parent's fork, now and then (seen with two sessions and more in one process). gRPC reads
whether to have them when it is first imported, so this module, which every import of the package brings, switches them
off before that.

The objects that such a child inherits are never destroyed in it either: destroying them takes locks whose owners are
gone. They cost the child no more than the memory it shares with its parent.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import weakref
from pathlib import Path
from typing import ClassVar

from steelyard.errors import FailedPrecondition

_LOG = logging.getLogger("steelyard")

_VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"
_OFF = ("0", "false", "no", "off", "f", "n")

# Whether gRPC was imported before this module could have a say.
_TOO_LATE = "grpc" in sys.modules
if not _TOO_LATE:
    os.environ.setdefault(_VARIABLE, "0")

# Names of gRPC's own threads, as Linux shows them; they tell that another library of this process uses gRPC.
_THREADS = ("grpc_global_tim", "event_engine", "lifeguard")


class _State:
    """What is known about this process. One instance, replaced by nothing."""

    used = False
    """gRPC was used here, or by another library before the last fork."""
    parent: int | None = None
    """The process that used gRPC before it forked this one; None where gRPC may be used."""
    kept: ClassVar[weakref.WeakSet[object]] = weakref.WeakSet()
    """gRPC objects that a forked child must not destroy."""


def claim(purpose: str) -> None:
    """Says that gRPC is about to be used here. FailedPrecondition where a fork has made that unsafe."""
    if _State.parent is not None:
        raise FailedPrecondition(
            f"{purpose} needs gRPC, which cannot be used in this process ({os.getpid()}): it was forked from process "
            f"{_State.parent}, which had already used gRPC, and gRPC's threads do not survive a fork. Start the "
            f'process by "spawn" or "forkserver" (the handle pickles), or make the call in the parent'
        )
    if not _State.used:
        if os.environ.get(_VARIABLE, "1").lower() not in _OFF:
            _LOG.warning(
                "gRPC's own fork handlers are on, and they may hang or abort processes forked while a session is open, "
                "a DataLoader's workers among them: %s",
                f"import steelyard before grpc, or set {_VARIABLE}=0"
                if _TOO_LATE
                else f"unset {_VARIABLE}, or start processes by spawn or forkserver",
            )
        _State.used = True


def allowed() -> bool:
    """Whether gRPC may be used in this process."""
    return _State.parent is None


def keep(*objects: object) -> None:
    """A forked child will not destroy these. This process destroys them as always."""
    for one in objects:
        _State.kept.add(one)


def _before() -> None:
    if not _State.used and "grpc" in sys.modules:
        _State.used = _grpc_threads_run()


def _after_in_child() -> None:
    if _State.used:
        _State.parent = os.getppid()
    for one in list(_State.kept):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


def _grpc_threads_run() -> bool:
    try:
        return any(
            (task / "comm").read_text().strip() in _THREADS for task in Path("/proc/self/task").iterdir()
        )
    except OSError:
        return False  # no such files on this system; then only our own use is known


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_after_in_child)
