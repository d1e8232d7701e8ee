"""The figures of each run for a scrape: asked of its thread, waited for no longer than a moment, worked out here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass

import numpy as np
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from steelyard_server.log import logger
from steelyard_server.observing.families import Families
from steelyard_server.observing.names import LOSS_QUANTILES, RUN
from steelyard_server.runs.catalog import Catalog
from steelyard_server.runs.errors import RunError
from steelyard_server.runs.figures import Figures, Reported
from steelyard_server.runs.run import Run
from steelyard_server.runs.tally import REASONS

WAIT_SECONDS = 0.5
"""How long a scrape waits for all runs together. Of those that do not answer in time it has what they said last."""

_log = logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What is worked out of a step that nothing changes any more. `weights`: effective ratio and largest share."""

    of: Reported
    quantiles: tuple[float, ...]
    weights: tuple[float, float] | None


@dataclass(slots=True, eq=False)
class _Known:
    """Of one run; `at` in time.monotonic(). `asked` is what it has not answered yet."""

    run: Run
    figures: Figures | None = None
    batch: Batch | None = None
    at: float = 0.0
    asked: Future[Figures] | None = None
    asked_at: float = 0.0


class RunMetrics(Collector):
    """One scrape at a time; another one waits for it."""

    def __init__(self, catalog: Catalog, wait_seconds: float = WAIT_SECONDS) -> None:
        self._catalog = catalog
        self._wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}

    def describe(self) -> Iterable[Metric]:
        return Families(RUN).all.values()

    def collect(self) -> Iterable[Metric]:
        families = Families(RUN)
        with self._lock:
            self._ask()
            self._wait()
            now = time.monotonic()
            for name, known in self._known.items():
                if known.figures is not None:
                    _put(families, name, known.figures, known.batch, now - known.at)
        return families.all.values()

    def _ask(self) -> None:
        runs = self._catalog.started()
        for name in [name for name, known in self._known.items() if runs.get(name) is not known.run]:
            del self._known[name]
        for name, run in runs.items():
            known = self._known.setdefault(name, _Known(run))
            if known.asked is None:
                known.asked_at = time.monotonic()
                try:
                    known.asked = run.figures()
                except RunError:
                    # It is being closed.
                    continue

    def _wait(self) -> None:
        deadline = time.monotonic() + self._wait_seconds
        for name, known in self._known.items():
            if known.asked is None:
                continue
            try:
                figures = known.asked.result(max(0.0, deadline - time.monotonic()))
            except FutureTimeout:
                continue
            except RunError:
                # Not in memory now: its figures are those of before.
                known.asked = None
                continue
            except Exception:
                _log.exception("run_figures_failed", run=name)
                known.asked = None
                continue
            known.asked, known.figures, known.at = None, figures, known.asked_at
            if figures.newest is None:
                known.batch = None
            elif known.batch is None or known.batch.of.record is not figures.newest.record:
                known.batch = batch_of(figures.newest)


def batch_of(newest: Reported) -> Batch:
    losses = newest.finite_losses()
    quantiles = np.quantile(losses, LOSS_QUANTILES) if len(losses) else np.empty(0)
    weights = newest.weights()
    spread = None
    if weights is not None and (total := float(weights.sum(dtype=np.float64))) > 0:
        squares = float(np.square(weights, dtype=np.float64).sum())
        spread = total**2 / (len(weights) * squares), float(weights.max()) / total
    return Batch(newest, tuple(quantiles.tolist()), spread)


def _put(families: Families, run: str, figures: Figures, batch: Batch | None, age: float) -> None:
    def put(name: str, value: float | None, **labels: str) -> None:
        if value is not None and not np.isnan(value):
            families.put(f"steelyard_run_{name}", value, run=run, **labels)

    tally, law = figures.tally, figures.law
    put("step", figures.next_step)
    put("closed_steps", figures.closed_steps)
    put("folded_steps", figures.folded_steps)
    put("ranks", figures.ranks)
    put("drawable", figures.drawable)
    if law is not None:
        put("effective_sample_ratio", law.effective_sample_ratio)
        put("largest_weight_share", law.largest_share)
        put("never_reported_share", law.never_reported_share)
    if batch is not None:
        for quantile, loss in zip(LOSS_QUANTILES, batch.quantiles, strict=False):
            put("loss", loss, quantile=f"{quantile:g}")
        if batch.weights is not None:
            put("batch_weights_effective_ratio", batch.weights[0])
            put("batch_weights_largest_share", batch.weights[1])
    families.put_steps("steelyard_run_staleness_steps", tally.staleness, run=run)
    families.put_steps("steelyard_run_loss_age_steps", tally.loss_age, run=run)
    put("batches_total", tally.batches)
    put("reported_losses_total", tally.losses)
    put("duplicate_reports_total", tally.duplicate)
    put("late_reports_total", tally.late)
    for reason in REASONS:
        put("rejected_reports_total", tally.refused[reason], reason=reason)
    put("nonfinite_losses_total", tally.nonfinite)
    put("timed_out_steps_total", tally.timed_out)
    put("journal_lag_records", figures.journal_lag)
    put("checkpoint_timestamp_seconds", figures.checkpointed_at)
    put("figures_age_seconds", age)
