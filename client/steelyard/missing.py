"""Warnings of what a run's policy reads and nobody brings."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable

from steelyard.errors import MissingSignalWarning
from steelyard.v1 import runs_pb2

_told: set[tuple[str, str]] = set()
_lock = threading.Lock()


def warn_of(run: str, one: runs_pb2.MissingInput, *, stacklevel: int) -> None:
    """Warns of it, once a name of a run in this process."""
    with _lock:
        if (run, one.name) in _told:
            return
        _told.add((run, one.name))
    remedy = (
        f"Upload it with client.set_column(dataset, {one.name!r}, values)"
        if one.column
        else f"Report it beside the losses, with session.report(batch, losses, signals={{{one.name!r}: values}}) or "
        f"BatchSampler.update(losses, signals=...), or with run.observe(ids, {{{one.name!r}: values}})"
    )
    warnings.warn(f"run {run!r}: {one.text}. {remedy}", MissingSignalWarning, stacklevel=stacklevel)


def warn_of_all(run: str, missing: Iterable[runs_pb2.MissingInput]) -> None:
    """As warn_of, for a method that its user called."""
    for one in missing:
        warn_of(run, one, stacklevel=4)
