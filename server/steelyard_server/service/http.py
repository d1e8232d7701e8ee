"""Metrics and health over HTTP."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from steelyard_server.observing.pulse import Pulse

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


_POLL_SECONDS = 0.1
"""How soon it hears that it is to be closed."""


_MOST_REQUESTS = 256
"""At a time; of one more the connection is closed. Whoever can reach the port could else have the process out of
threads and descriptors."""


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # Whoever stops the server does not wait for who reads slowly.
    block_on_close = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._room = threading.BoundedSemaphore(_MOST_REQUESTS)
        super().__init__(*args, **kwargs)

    def server_bind(self) -> None:
        # Not the base class's, which asks DNS for the name of the host, for as long as that takes, and uses none.
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:  # there was no thread to be had
                self._room.release()
                raise
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()


class _ThreadingServer6(_ThreadingServer):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
        pass


class HttpEndpoint:
    """Serves /metrics, /healthz (a restart would not help) and /readyz (work may be sent) on daemon threads. The body
    of a 503 says why."""

    def __init__(self, address: str, pulse: Pulse, registry: CollectorRegistry) -> None:
        host, _, port = address.rpartition(":")
        app = _routes(make_wsgi_app(registry), pulse)
        kind = _ThreadingServer6 if host.startswith("[") else _ThreadingServer
        self._server = make_server(
            host.strip("[]"), int(port), app, server_class=kind, handler_class=_QuietHandler
        )
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


def _routes(metrics: WSGIApplication, pulse: Pulse) -> WSGIApplication:
    probes = {"/healthz": pulse.stuck, "/readyz": pulse.unready}

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start_response)
        if path not in probes:
            status, body = "404 Not Found", "Not Found"
        elif (fault := probes[path]()) is None:
            status, body = "200 OK", "OK"
        else:
            status, body = "503 Service Unavailable", fault
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{body}\n".encode()]

    return app
