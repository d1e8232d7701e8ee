"""Metrics and health over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from steelyard_server.history.store import Store

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
        pass


class StoreMetrics(Collector):
    """What the store knows of itself, read at each scrape."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterable[Metric]:
        stats = self._store.stats()
        yield GaugeMetricFamily(
            "steelyard_store_healthy", "Whether writes succeed.", float(self._store.healthy)
        )
        yield GaugeMetricFamily("steelyard_store_map_bytes", "Size of the memory map.", stats.map_size)
        yield GaugeMetricFamily(
            "steelyard_store_used_bytes", "Used part of the memory map.", stats.used_bytes
        )
        yield GaugeMetricFamily(
            "steelyard_store_queue_bytes", "Writes that wait to be committed.", stats.queue_bytes
        )
        yield CounterMetricFamily("steelyard_store_commits", "Transactions committed.", stats.commits)
        yield GaugeMetricFamily(
            "steelyard_store_last_commit_seconds", "Duration of the last commit.", stats.last_commit_seconds
        )


class HttpEndpoint:
    """Serves /metrics, /healthz (the process answers) and /readyz (it can take writes) on daemon threads."""

    def __init__(self, address: str, ready: Callable[[], bool], store: Store) -> None:
        host, _, port = address.rpartition(":")
        registry = CollectorRegistry()
        registry.register(StoreMetrics(store))
        app = _routes(make_wsgi_app(registry), ready)
        self._server = make_server(
            host.strip("[]"), int(port), app, server_class=_ThreadingServer, handler_class=_QuietHandler
        )
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


def _routes(metrics: WSGIApplication, ready: Callable[[], bool]) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start_response)
        known = {"/healthz": True, "/readyz": ready()}
        if path not in known:
            status = "404 Not Found"
        else:
            status = "200 OK" if known[path] else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{status[4:]}\n".encode()]

    return app
