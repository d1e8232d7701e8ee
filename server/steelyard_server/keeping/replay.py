"""Whether the journal leads from each checkpoint to the next: the state that is rebuilt is the one that was saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from steelyard_server.history.arrays import to_json
from steelyard_server.runs import snapshot
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.snapshot import Snapshot


def differences(log: RunLog) -> Iterator[tuple[int, str]]:
    """(step, what differs: "" where nothing does) of each checkpoint that is replayed: from the one before it, or from
    the beginning where that is kept. Costs a fold of all that the journal keeps.
    """
    for state, saved in log.replayed():
        yield saved.next_step, difference(snapshot.take(state), snapshot.take(saved))


def difference(found: Snapshot, saved: Snapshot) -> str:
    """The first that differs, in words; "" where nothing does."""
    for name in sorted({*found.meta, *saved.meta}):
        mine, theirs = (to_json({"": each.meta.get(name)}) for each in (found, saved))
        if mine != theirs:
            return f"{name} is {mine[:200]}, saved was {theirs[:200]}"
    return _arrays("", found.blobs, saved.blobs) or _arrays("column ", found.columns, saved.columns)


def _arrays(kind: str, found: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    if found.keys() != saved.keys():
        return f"{kind}{sorted(found.keys() ^ saved.keys())} is in one of them alone"
    for name in sorted(found):
        mine, theirs = np.asarray(found[name]), np.asarray(saved[name])
        if mine.shape != theirs.shape or not np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f"):
            return f"{kind}{name} differs"
    return ""
