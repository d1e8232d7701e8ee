"""Bytes written to disk for each loss that is reported, and what the settings let it be at most: the journal, and the
checkpoints with the history."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import steelyard
from steelyard.testing import ServerProcess
from steelyard_server.history.chunks import CHUNK
from steelyard_server.history.losses import MERGE_COST
from steelyard_server.history.segments import BLOCK, SEGMENT_LOSSES
from tests.benchmarks.lives import DRAW, written
from tests.benchmarks.measure import Options, Series, Table

_WAIT_SECONDS = 600.0
_QUIET_SECONDS = 2.5
"""Nothing is written for longer than the server takes to look whether a checkpoint is due, once a second."""
_MIB = 1 << 20
_COLUMN = 4
"""Bytes an example of the one column that this policy keeps."""

_WINDOW_STEPS, _WINDOW_BYTES = 256, 21
"""Batches that may yet be reported, and bytes of an id there: itself, probability, loss, whether it was reported."""

_PAGE = 4096
_COMMIT_PAGES = 10
"""At most, of one commit: from the root of two tables to a leaf each, what is free, the list of tables, the head."""
_HEADS = 300
"""Of the record of a batch or a report, beside its arrays."""
_PART_BYTES = 1 << 18
"""Of a checkpoint, in one commit."""
_ROW_OF_LOSSES, _LOSS_IN_A_ROW = 48, 10
"""Bytes of a segment: key, seal and head of a row; step, id and loss of each loss in it."""


@dataclass(frozen=True, slots=True)
class _Setting:
    """`checkpoint_bytes`: of the journal between two checkpoints."""

    ids: int
    batch: int = 1024
    checkpoint_bytes: int = 256 * _MIB
    history: int = 8
    durability: str = "sync"


def measure(options: Options) -> Iterator[Table]:
    for name, setting in _settings(options).items():
        yield _table(options, name, setting)


def _settings(options: Options) -> Mapping[str, _Setting]:
    if options.quick:
        return {"quick": _Setting(10_000, checkpoint_bytes=_MIB)}
    settings = {
        "checkpoints every 16 MiB": _Setting(1_000_000, checkpoint_bytes=16 * _MIB),
        "the same, batches of 256": _Setting(1_000_000, 256, 16 * _MIB),
        "the same, no history": _Setting(1_000_000, checkpoint_bytes=16 * _MIB, history=0),
        "the same, durability interval": _Setting(
            1_000_000, checkpoint_bytes=16 * _MIB, durability="interval"
        ),
    }
    if options.large:
        settings["default settings"] = _Setting(1_000_000, 4096)
        settings["default settings, 1e7 ids"] = _Setting(10_000_000, 4096)
    return settings


def _table(options: Options, name: str, setting: _Setting) -> Table:
    repeats = 1 if setting.checkpoint_bytes > 16 * _MIB else min(options.repeats, 3)
    found = [_turn(options, f"{name}-{turn}", setting) for turn in range(repeats)]
    series = [
        Series(what, unit, [values[what] for values in found], _AGAINST.get(what))
        for what, unit in _UNITS.items()
    ]
    told = {
        "ids": setting.ids,
        "batch": setting.batch,
        "journal between checkpoints": f"{setting.checkpoint_bytes / _MIB:g} MiB",
        "history": setting.history,
        "durability": setting.durability,
    }
    return Table(f"disk: {name}", series, told, _NOTES)


_CHECKPOINTS = 2
_UNITS = {
    "a loss: written": "B",
    "a loss: bound": "B",
    "a loss: the journal's records": "B",
    "a loss: written, of the journal": "B",
    "a loss: bound, of the journal": "B",
    "a loss: written, of checkpoints": "B",
    "a loss: bound, of checkpoints": "B",
    "a loss: pages dirtied": "B",
    "a checkpoint": "MB",
    "losses between checkpoints": "",
}
_AGAINST = {
    f"a loss: written{part}": f"a loss: bound{part}" for part in ("", ", of the journal", ", of checkpoints")
}
_NOTES = (
    (
        "written: sectors of the disk that the folder is on, with all that the file system adds; nobody else may write "
        "meanwhile. Where the system does not tell, the pages dirtied by the process, which /proc/PID/io counts: of a "
        "file that it holds in large pieces, a piece for each page"
    ),
    "the journal's records hold the batches drawn too",
    "bound, of the journal: two commits a step, each of its record in whole pages and 10 pages around it",
    (
        "bound, of checkpoints: the column whole, the last 256 batches, the losses since the last one in segments, "
        "and at most MERGE_COST times that for their merge into the rows of the examples; 10 pages for each 256 KiB"
    ),
)


def _turn(options: Options, name: str, setting: _Setting) -> dict[str, float]:
    """Reports until just after the first checkpoint is due, and again for the second, and rests until it is made. Eight
    tenths of the way to the first show what the journal takes alone."""
    settings: dict[str, Any] = {
        "checkpoint_interval_seconds": 1e6,
        "checkpoint_journal_bytes": setting.checkpoint_bytes,
        "durability": setting.durability,
    }
    with ServerProcess(options.scratch / name.replace(" ", "-").replace(",", ""), **settings) as server:
        client = server.client(timeout=_WAIT_SECONDS)
        client.create_dataset("d", setting.ids)
        run = client.create_run(
            "r", dataset="d", batch_size=setting.batch, draw=DRAW, history_size=setting.history
        )
        start = _at_rest(server)
        with run.join(prefetch=2, timeout=_WAIT_SECONDS) as session:
            losses = np.random.default_rng(0).lognormal(size=setting.batch).astype(np.float32)
            _report(run, session, losses, int(0.8 * setting.checkpoint_bytes))
            first, alone = run.stats(), _at_rest(server) - start
            if run.retention().checkpoints:
                raise RuntimeError(f"expected no checkpoint before {setting.checkpoint_bytes} bytes, got one")
            for checkpoint in range(1, _CHECKPOINTS + 1):
                _report(run, session, losses, int(1.02 * checkpoint * setting.checkpoint_bytes))
                everything = _at_rest(server) - start
            last = run.stats()
        if not run.retention().checkpoints:
            raise RuntimeError(f"expected {_CHECKPOINTS} checkpoints by {last.journal_bytes} bytes, got none")
    journal = alone[0] / first.reported_losses
    a_loss, pages = everything / last.reported_losses
    between = setting.checkpoint_bytes / (last.journal_bytes / last.reported_losses)
    bounds = _bound_of_journal(setting), _bound_of_checkpoint(setting, between) / between
    return {
        "a loss: written": a_loss,
        "a loss: bound": sum(bounds),
        "a loss: the journal's records": last.journal_bytes / last.reported_losses,
        "a loss: written, of the journal": journal,
        "a loss: bound, of the journal": bounds[0],
        "a loss: written, of checkpoints": max(0.0, a_loss - journal),
        "a loss: bound, of checkpoints": bounds[1],
        "a loss: pages dirtied": pages,
        "a checkpoint": max(0.0, a_loss - journal) * last.reported_losses / _CHECKPOINTS / 1e6,
        "losses between checkpoints": between,
    }


def _bound_of_journal(setting: _Setting) -> float:
    """Bytes a loss. With durability `interval` the records go to a file of their own first."""
    records = [12 * setting.batch + _HEADS, 4 * setting.batch + _HEADS]
    pages = sum(-(-record // _PAGE) + _COMMIT_PAGES for record in records)
    first = sum(records) if setting.durability == "interval" else 0
    return (pages * _PAGE + first) / setting.batch


def _bound_of_checkpoint(setting: _Setting, losses: float) -> float:
    """Bytes, behind so many losses since the one before."""
    column = setting.ids * _COLUMN * (1 + 2 * _PAGE / (_COLUMN * CHUNK))
    window = _WINDOW_STEPS * setting.batch * _WINDOW_BYTES
    history = 0.0
    if setting.history:
        segments = losses / SEGMENT_LOSSES
        rows = min(losses, max(segments, 1) * -(-setting.ids // BLOCK))
        # Pages are full but for a half at worst.
        history = (1.5 + MERGE_COST) * (rows * _ROW_OF_LOSSES + losses * _LOSS_IN_A_ROW)
    return (column + window + history) * (1 + _COMMIT_PAGES * _PAGE / _PART_BYTES)


def _report(run: steelyard.Run, session: steelyard.Session, losses: np.ndarray, journal_bytes: int) -> int:
    """Trains until the journal holds so much; looks at it now and then."""
    steps = 8
    before = run.stats().journal_bytes
    while before < journal_bytes:
        for _ in range(steps):
            session.report_async(session.next(), losses)
        session.flush()
        now = run.stats().journal_bytes
        steps = max(1, min(500, int(steps * (journal_bytes - now) / max(1, now - before))))
        before = now
    return before


def _at_rest(server: ServerProcess) -> np.ndarray:
    """Bytes written to the disk so far, and those of pages dirtied, once nothing more is. RuntimeError where it goes on
    for too long."""
    deadline, before, since = time.monotonic() + _WAIT_SECONDS, -1, time.monotonic()
    while time.monotonic() - since < _QUIET_SECONDS:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"expected the server to come to rest within {_WAIT_SECONDS:g} s, it writes on"
            )
        now = written(server.pid)
        if now != before:
            before, since = now, time.monotonic()
        time.sleep(0.05)
    os.sync()
    return np.array([_sectors(server.directory, before), before])


def _sectors(folder: Path, otherwise: int) -> int:
    """Bytes written to the disk that `folder` is on, by anybody, since the system began."""
    device = folder.stat().st_dev
    told = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    return 512 * int(told.read_text().split()[6]) if told.exists() else otherwise
