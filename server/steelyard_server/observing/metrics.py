"""All metrics of one server, in a registry of its own: several may live in a process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from steelyard_server.history.store import FORMAT_VERSION, Store
from steelyard_server.observing.disk import DiskWatch
from steelyard_server.observing.facts import Facts
from steelyard_server.observing.families import Families, counter, gauge, histogram
from steelyard_server.observing.names import KEEPING, SECURITY, SERVER, STORE, Name
from steelyard_server.observing.pulse import Pulse
from steelyard_server.observing.runs import RunMetrics
from steelyard_server.runs.catalog import Catalog


class Metrics:
    """What is counted as it happens, from the start on; what is read at a scrape joins with `watch`."""

    def __init__(self, version: str) -> None:
        self.in_flight = gauge("steelyard_rpc_in_flight")
        self.handled = counter("steelyard_rpc_handled_total")
        self.duration = histogram("steelyard_rpc_duration_seconds")
        self.streams = gauge("steelyard_streams_open")
        self.commits = histogram("steelyard_store_commit_seconds")
        self.auth_failures = counter("steelyard_auth_failures_total")
        self.quota_refused = counter("steelyard_quota_refused_total")
        self.version = version
        self.registry = CollectorRegistry()
        self.registry.register(
            _Counted(
                self.in_flight,
                self.handled,
                self.duration,
                self.streams,
                self.commits,
                self.auth_failures,
                self.quota_refused,
            )
        )
        ProcessCollector(registry=self.registry)

    def watch(
        self,
        store: Store,
        disk: DiskWatch,
        catalog: Catalog,
        pulse: Pulse,
        facts: Facts,
        certificates: Callable[[], Mapping[str, float]] = dict,
        faulty: Callable[[], Mapping[str, bool]] = dict,
    ) -> None:
        """`certificates` gives the end of each certificate file, seconds since 1970; `faulty`, of each
        file that is read again, whether what it holds now is not in force. They must not read files."""
        store.on_commit = self.commits.observe
        self.registry.register(_State(self.version, store, disk, catalog, pulse))
        self.registry.register(_Seldom(facts, certificates, faulty))
        self.registry.register(RunMetrics(catalog))


class _Counted(Collector):
    """Without the client library's series of when each counter began: that is when the process did."""

    def __init__(self, *metrics: Collector) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        for metric in self._metrics:
            for family in metric.collect():
                family.samples = [one for one in family.samples if not one.name.endswith("_created")]
                yield family


class _State(Collector):
    """The server, and its store as it was last read: a scrape never waits for the disk."""

    def __init__(self, version: str, store: Store, disk: DiskWatch, catalog: Catalog, pulse: Pulse) -> None:
        self._version = version
        self._store = store
        self._disk = disk
        self._catalog = catalog
        self._pulse = pulse

    def describe(self) -> Iterable[Metric]:
        return Families(_read(*SERVER, *STORE)).all.values()

    def collect(self) -> Iterable[Metric]:
        families = Families(_read(*SERVER, *STORE))
        datasets, runs = self._catalog.counts()
        put = families.put
        put("steelyard_build_info", 1, version=self._version, format=str(FORMAT_VERSION))
        put("steelyard_ready", not self._pulse.unready())
        put("steelyard_alive", not self._pulse.stuck())
        put("steelyard_event_loop_lag_seconds", self._pulse.loop_lag_seconds())
        put("steelyard_runs", runs)
        put("steelyard_runs_loaded", len(self._catalog.started()))
        put("steelyard_datasets", datasets)
        put("steelyard_store_healthy", self._store.healthy)
        put("steelyard_store_writer_busy_seconds", self._store.writer_busy_seconds())
        figures = self._disk.figures
        if figures is not None:
            stats = figures.store
            put("steelyard_store_map_bytes", stats.map_size)
            put("steelyard_store_map_limit_bytes", stats.max_map_size)
            put("steelyard_store_used_bytes", stats.used_bytes)
            put("steelyard_store_live_bytes", stats.live_bytes)
            put("steelyard_store_queue_bytes", stats.queue_bytes)
            put("steelyard_store_queue_records", stats.queue_writes)
            put("steelyard_store_failures_total", stats.failures)
            put("steelyard_disk_free_bytes", figures.free_bytes)
            put("steelyard_disk_size_bytes", figures.size_bytes)
            put("steelyard_disk_age_seconds", figures.age_seconds)
        return families.all.values()


class _Seldom(Collector):
    def __init__(
        self,
        facts: Facts,
        certificates: Callable[[], Mapping[str, float]],
        faulty: Callable[[], Mapping[str, bool]],
    ) -> None:
        self._facts = facts
        self._certificates = certificates
        self._faulty = faulty

    def describe(self) -> Iterable[Metric]:
        return Families(_read(*KEEPING, *SECURITY)).all.values()

    def collect(self) -> Iterable[Metric]:
        families, facts = Families(_read(*KEEPING, *SECURITY)), self._facts
        if facts.backup_at is not None:
            families.put("steelyard_backup_timestamp_seconds", facts.backup_at)
        families.put("steelyard_backup_failures_total", facts.backup_failures)
        if facts.restore_verified_at is not None:
            families.put("steelyard_restore_verified_timestamp_seconds", facts.restore_verified_at)
        for file, ends in self._certificates().items():
            families.put("steelyard_certificate_expiry_timestamp_seconds", ends, file=file)
        for file, is_faulty in self._faulty().items():
            families.put("steelyard_file_not_reloaded", int(is_faulty), file=file)
        return families.all.values()


_AS_THEY_HAPPEN = {
    "steelyard_store_commit_seconds",
    "steelyard_auth_failures_total",
    "steelyard_quota_refused_total",
}
"""Counted by metrics of their own, of parts of which the others are read at a scrape."""


def _read(*names: Name) -> tuple[Name, ...]:
    """Those that are read at a scrape."""
    return tuple(one for one in names if one.name not in _AS_THEY_HAPPEN)
