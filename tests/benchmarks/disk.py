"""Bytes written to disk for each loss that is reported: the journal, and the checkpoints with the history."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import steelyard
from steelyard.testing import ServerProcess
from tests.benchmarks.lives import DRAW, written
from tests.benchmarks.measure import Options, Series, Table

_WAIT_SECONDS = 600.0
_QUIET_SECONDS = 2.5
"""Nothing is written for longer than the server takes to look whether a checkpoint is due, once a second."""
_MIB = 1 << 20
_COLUMN = 4
"""Bytes an example of the one column that this policy keeps. In the history it takes 1, and 8 for each loss kept."""

_WINDOW_STEPS, _WINDOW_BYTES = 256, 21
"""Batches that may yet be reported, and bytes of an id there: itself, probability, loss, whether it was reported."""


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
    series = [Series(what, unit, [values[what] for values in found]) for what, unit in _UNITS.items()]
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
    "a loss: the journal's records": "B",
    "a loss: written, of the journal": "B",
    "a loss: written, of checkpoints": "B",
    "a loss: bound, of checkpoints": "B",
    "a checkpoint": "MB",
    "losses between checkpoints": "",
}
_NOTES = (
    (
        "written: what the process caused to be written to storage (/proc/PID/io), in whole pages; the "
        "journal's records hold the batches drawn too"
    ),
    "bound: at each checkpoint its column and history whole, and the last 256 batches with losses",
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
        start = _at_rest(server.pid)
        with run.join(prefetch=2, timeout=_WAIT_SECONDS) as session:
            losses = np.random.default_rng(0).lognormal(size=setting.batch).astype(np.float32)
            _report(run, session, losses, int(0.8 * setting.checkpoint_bytes))
            first, alone = run.stats(), _at_rest(server.pid) - start
            if run.retention().checkpoints:
                raise RuntimeError(f"expected no checkpoint before {setting.checkpoint_bytes} bytes, got one")
            for checkpoint in range(1, _CHECKPOINTS + 1):
                _report(run, session, losses, int(1.02 * checkpoint * setting.checkpoint_bytes))
                all_written = _at_rest(server.pid) - start
            last = run.stats()
        if not run.retention().checkpoints:
            raise RuntimeError(f"expected {_CHECKPOINTS} checkpoints by {last.journal_bytes} bytes, got none")
    a_loss = alone / first.reported_losses
    of_checkpoints = max(0.0, all_written - a_loss * last.reported_losses)
    between = setting.checkpoint_bytes / (last.journal_bytes / last.reported_losses)
    whole = setting.ids * (_COLUMN + (1 + 8 * setting.history if setting.history else 0))
    whole += _WINDOW_STEPS * setting.batch * _WINDOW_BYTES
    return {
        "a loss: written": all_written / last.reported_losses,
        "a loss: the journal's records": last.journal_bytes / last.reported_losses,
        "a loss: written, of the journal": a_loss,
        "a loss: written, of checkpoints": of_checkpoints / last.reported_losses,
        "a loss: bound, of checkpoints": whole / between,
        "a checkpoint": of_checkpoints / _CHECKPOINTS / 1e6,
        "losses between checkpoints": between,
    }


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


def _at_rest(pid: int) -> int:
    """Bytes written so far, once nothing more is. RuntimeError where it goes on for too long."""
    deadline, before, since = time.monotonic() + _WAIT_SECONDS, -1, time.monotonic()
    while time.monotonic() - since < _QUIET_SECONDS:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"expected the server to come to rest within {_WAIT_SECONDS:g} s, it writes on"
            )
        now = written(pid)
        if now != before:
            before, since = now, time.monotonic()
        time.sleep(0.05)
    return before
