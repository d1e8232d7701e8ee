"""The daemon: startup, serving, draining, shutdown. The same object is embedded by `steelyard.local`.

The gRPC edge is asyncio on a thread of its own: an idle stream costs no thread, and with 64 streams it was measured
ahead of the threaded stack (ARCHITECTURE.md).
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from grpc_health.v1 import health

from steelyard_server import plugins
from steelyard_server.config import ConfigError, Settings
from steelyard_server.history.errors import StoreError
from steelyard_server.history.store import Store
from steelyard_server.keeping.errors import RefusedError
from steelyard_server.keeping.keeper import Keeper, KeepingStatus
from steelyard_server.keeping.places import refuse_inside
from steelyard_server.kernels_at_start import Takeover
from steelyard_server.log import logger
from steelyard_server.observing import tracing
from steelyard_server.observing.disk import DiskWatch
from steelyard_server.observing.facts import Facts
from steelyard_server.observing.memory import Memory
from steelyard_server.observing.metrics import Metrics
from steelyard_server.observing.pulse import Pulse
from steelyard_server.observing.tracing import NO_TRACES
from steelyard_server.runs.catalog import Catalog
from steelyard_server.runs.journaled import CheckpointRule
from steelyard_server.runs.limits import Limits
from steelyard_server.security import sockets
from steelyard_server.security.gatekeeper import Gatekeeper
from steelyard_server.security.tls import Tls
from steelyard_server.security.watched import Looking, Watched
from steelyard_server.service import edge
from steelyard_server.service.guard import Guard
from steelyard_server.service.http import HttpEndpoint
from steelyard_server.service.observe import Observe
from steelyard_server.service.probes import EVERY_SECONDS, HealthPort, PortKeeper, Status, statuses

T = TypeVar("T")

_START_SECONDS = 60.0
_STOP_SECONDS = 5.0
"""For the event loop, at a stop, to do what it is asked. It has nothing long to do then."""
_SIGNAL_SECONDS = 0.1
_LEFT_SECONDS = 2.0
"""For what is cancelled to end, at a stop."""

_log = logger(__name__)


class Server:
    """A Steelyard server in this process: `start`, `address`, `stop`. One per data directory."""

    def __init__(self, settings: Settings) -> None:
        """ConfigError where backups would go into the data."""
        _check_apart(settings)
        self._settings = settings
        self._calls = ThreadPoolExecutor(settings.call_threads, thread_name_prefix="call")
        # A backup, a check, and two that list: as long as it takes, and no other call waits for them.
        self._keeping = ThreadPoolExecutor(4, thread_name_prefix="keeping")
        self._health = health.aio.HealthServicer()
        self._http: HttpEndpoint | None = None
        self._port: HealthPort | None = None
        self._keeper: PortKeeper | None = None
        self._store: Store | None = None
        self._catalog: Catalog | None = None
        self._backups: Keeper | None = None
        self._disk: DiskWatch | None = None
        self._pulse = Pulse(settings.stuck_after_seconds, int(settings.disk_headroom_bytes))
        self._metrics = Metrics(metadata.version("steelyard"))
        self._traces = NO_TRACES
        self.facts = Facts()
        self._kernels = Takeover()
        self._watch: asyncio.Task[None] | None = None
        self._trim: asyncio.Task[None] | None = None
        self._looking: Looking | None = None
        self._told: dict[str, Status] = {}
        self._started = False
        self.port = 0

    def start(self) -> None:
        """Opens the data directory and serves; returns when the server answers.

        ConfigError when certificates, keys or the access file are not right, StoreBusy or StoreTooNew when the
        directory cannot be used, OSError when an address cannot be bound, the port file not written, or the settings
        insist on compiled kernels and there are none. Nothing is left of a server that did not start.
        """
        settings = self._settings
        if settings.kernels == "compiled":
            self._kernels.finish()
        # First of all: a server without its keys and its list of who may do what has no business with data.
        self.tls = Tls.of(settings)
        if settings.listen.startswith("unix:"):
            sockets.check_folder(settings.listen)
        self._gatekeeper = Gatekeeper(settings, self._calls)
        tally, metrics = self._gatekeeper.tally, self._metrics
        tally.on_auth_failure = lambda reason: metrics.auth_failures.labels(reason).inc()
        tally.on_quota_refused = lambda *which: metrics.quota_refused.labels(*which).inc()
        # Before runs are loaded, which may use them.
        for fault in plugins.register():
            _log.warning("method_refused", fault=fault)
        if settings.tracing:
            self._traces = tracing.configured()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="grpc edge", daemon=True)
        try:
            self._serve_probes()
            self._open()
            self._thread.start()
            self._await(self._start(), _START_SECONDS)
            if settings.port_file is not None:
                _write_port(settings.port_file, self.port)
        except BaseException:
            self.stop(0.0)
            raise
        self._looking = Looking(self._files())
        self._started = True
        if self._backups is not None:
            self._backups.start()
        if settings.kernels == "auto":
            self._kernels.start()
        _log.info(
            "serving",
            address=self.address,
            http=self.http_address,
            health=self.health_address,
            tls="off" if self.tls is None else "on",
            access=None if settings.access is None else str(settings.access),
            data_dir=str(settings.data_dir),
            durability=settings.durability,
        )

    def _files(self) -> list[Watched[Any]]:
        return [*self._gatekeeper.files, *([] if self.tls is None else [self.tls.files])]

    def _faulty(self) -> dict[str, bool]:
        return {str(path): files.fault is not None for files in self._files() for path in files.paths}

    def _serve_probes(self) -> None:
        """Before the data directory is read: that can take long, and probes want to know that it goes on."""
        settings = self._settings
        if settings.http is not None:
            try:
                self._http = HttpEndpoint(settings.http, self._pulse, self._metrics.registry)
            except OSError as error:
                raise edge.cannot_listen(settings.http, error) from error
        if settings.health is not None:
            self._port = HealthPort(settings.health)
            self._keeper = PortKeeper(self._port, self._pulse)

    def _open(self) -> None:
        settings = self._settings
        store = self._store = Store.open(
            settings.data_dir,
            durability=settings.durability,
            interval=settings.durability_interval_seconds,
            map_size=int(settings.map_size_bytes),
            max_map_size=int(settings.max_map_size_bytes),
        )
        if settings.port_file is not None:
            # Left by a server that was killed: whoever waits for the file must not find an old one.
            settings.port_file.unlink(missing_ok=True)
        rule = CheckpointRule(settings.checkpoint_interval_seconds, int(settings.checkpoint_journal_bytes))
        limits = Limits(
            settings.max_runs, settings.max_datasets, settings.max_examples, settings.max_draws_per_call
        )
        self._catalog = Catalog(store, rule, int(settings.max_message_bytes), limits)
        self._backups = _keeper(settings, store, self.facts)
        self._disk = DiskWatch(settings.data_dir, store)
        self._pulse.watch(store, self._disk)
        certificates = dict if self.tls is None else self.tls.certificate_expiries
        self._metrics.watch(
            store, self._disk, self._catalog, self._pulse, self.facts, certificates, self._faulty
        )

    @property
    def address(self) -> str:
        """What a client connects to."""
        listen = self._settings.listen
        return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{self.port}"

    @property
    def http_address(self) -> str | None:
        return None if self._http is None else self._http.address

    @property
    def health_address(self) -> str | None:
        return None if self._port is None else self._port.address

    def stop(self, grace: float | None = None) -> bool:
        """Drains and stops: no new batches, reports that came are made durable, every run gets a checkpoint.

        False where that took longer than `grace` seconds (default: the settings'); what is durable is then as after
        a kill: nothing acknowledged is lost.
        """
        grace = self._settings.grace_seconds if grace is None else grace
        deadline = time.monotonic() + grace
        clean = True
        self._kernels.stop()
        # First, so that nobody is sent here who would be refused.
        self._pulse.drains()
        if self._keeper is not None:
            self._keeper.update()
        if self._backups is not None:
            self._backups.stop()
        if self._looking is not None:
            self._looking.close()
        self._await_at_stop(self._refuse)
        if self._catalog is not None:
            clean = self._catalog.close(deadline)
        clean = self._await_at_stop(self._stop) and clean
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()
        for threads in (self._calls, self._keeping):
            threads.shutdown(wait=False, cancel_futures=True)
        if self._disk is not None:
            self._disk.close()
        try:
            if self._store is not None:
                self._store.close(max(5.0, deadline - time.monotonic()))
        except StoreError as error:
            _log.error("store_still_busy", error=str(error))
            clean = False
        for probes in (self._keeper, self._port, self._http):
            if probes is not None:
                probes.close()
        self._traces.close()
        # Last, of the time that is left: nothing that was promised depends on them.
        self._kernels.wait(max(0.0, deadline - time.monotonic()))
        # Not that of another server, which holds the directory.
        if self._settings.port_file is not None and self._store is not None:
            self._settings.port_file.unlink(missing_ok=True)
        if self._started:
            _log.info("stopped", clean=clean)
        return clean

    # ---- on the event loop ----

    async def _start(self) -> None:
        assert self._catalog is not None, "opened before"
        assert self._backups is not None, "opened before"
        observe = Observe(self._metrics, self._traces)
        self.guard = Guard(self._settings, self._gatekeeper, self._catalog.dataset_of)
        self._grpc = edge.build(
            self._settings,
            self._catalog,
            self._backups,
            self._calls,
            self._keeping,
            self._health,
            self.guard,
            [observe],
        )
        await self._report_health()
        credentials = None if self.tls is None else self.tls.credentials
        self.port = edge.bind(self._grpc, self._settings.listen, credentials)
        if self._settings.listen.startswith("unix:"):
            sockets.tell_who_may_connect(self._settings.listen)
        await self._grpc.start()
        self._pulse.beat()
        self._pulse.serves()
        await self._report_health()
        if self._keeper is not None:
            self._keeper.update()
        self._watch = asyncio.create_task(self._watch_health())
        self._trim = asyncio.create_task(self._give_memory_back())

    async def _give_memory_back(self) -> None:
        """Not on the loop: it takes as long as there is much of it."""
        memory = Memory()
        while True:
            await asyncio.sleep(memory.EVERY_SECONDS)
            await self._loop.run_in_executor(self._calls, memory.give_back)

    async def _watch_health(self) -> None:
        while True:
            self._pulse.beat()
            await asyncio.sleep(EVERY_SECONDS)
            await self._report_health()

    async def _report_health(self) -> None:
        """Who watches is told of changes alone."""
        for name, status in statuses(self._pulse).items():
            if self._told.get(name) != status:
                await self._health.set(name, status)
                self._told[name] = status

    async def _refuse(self) -> None:
        for task in (self._watch, self._trim):
            if task is not None:
                task.cancel()
        await self._report_health()

    async def _stop(self) -> None:
        if hasattr(self, "_grpc"):
            await self._grpc.stop(0.5)
        # What calls leave behind (their cleaning up, the work of those whose client went away) ends with the loop.
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_LEFT_SECONDS)

    # ---- helpers ----

    def _await_at_stop(self, what: Callable[[], Coroutine[Any, Any, object]]) -> bool:
        """Whether the event loop did it. One that has come to a stand keeps nothing from being made durable."""
        if not self._thread.is_alive():
            return True
        try:
            self._await(what(), _STOP_SECONDS)
        except TimeoutError:
            _log.error("event_loop_stuck", seconds=_STOP_SECONDS)
            return False
        return True

    def _await(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)


def serve(settings: Settings) -> int:
    """Runs a server until SIGTERM or SIGINT; the exit status: 0 after a whole drain, 1 after a cut one."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    server = Server(settings)
    try:
        server.start()
        # Not a wait on a lock: where the system hands the signal to another thread, nothing would end that wait, and
        # a handler that runs in the middle of it could wait for its own thread.
        while not asked:
            time.sleep(_SIGNAL_SECONDS)
        _log.info("draining", signal=signal.Signals(asked[0]).name, grace_seconds=settings.grace_seconds)
        return 0 if server.stop() else 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_apart(settings: Settings) -> None:
    try:
        if settings.backup_to is not None:
            refuse_inside(settings.backup_to, settings.data_dir)
    except RefusedError as error:
        raise ConfigError(f"backup_to: {error}") from None


def _keeper(settings: Settings, store: Store, facts: Facts) -> Keeper:
    def tell(status: KeepingStatus) -> None:
        facts.backup_at = status.backup_unix_seconds
        facts.backup_failures = status.backup_failures
        facts.restore_verified_at = status.verified_unix_seconds

    return Keeper(
        store,
        settings.data_dir,
        to=settings.backup_to,
        interval=settings.backup_interval_seconds,
        keep=settings.backup_keep,
        timeout=settings.backup_timeout_seconds,
        rate=int(settings.backup_rate_bytes),
        tell=tell,
    )


def _write_port(path: Path, port: int) -> None:
    """A reader sees the file whole or not at all."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        draft.write_text(f"{port}\n")
        draft.replace(path)
    except OSError as error:
        raise OSError(f"port_file = {str(path)!r} cannot be written: {error.strerror}") from error
