"""Health by gRPC: the standard service, with a name for each kind of probe, on the main port and on one of its own.

steelyard.startup, steelyard.readiness, steelyard.liveness, and as readiness: "" and each service
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from steelyard_server.log import logger
from steelyard_server.observing.pulse import Pulse
from steelyard_server.service import edge

STARTUP, READINESS, LIVENESS = "steelyard.startup", "steelyard.readiness", "steelyard.liveness"

EVERY_SECONDS = 0.25
_MAX_CALLS = 64
_MAX_MESSAGE_BYTES = 4096

Status = int
"""A health_pb2.HealthCheckResponse.ServingStatus."""

_log = logger(__name__)


class HealthPort:
    """The health service alone, in plaintext: no data, no reflection. On threads of its own, so that it answers while
    the event loop does not, and before there is one."""

    def __init__(self, address: str) -> None:
        self.servicer = health.HealthServicer(experimental_non_blocking=True)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="health")
        self._server = grpc.server(
            self._threads,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_concurrent_streams", _MAX_CALLS),
            ],
            maximum_concurrent_rpcs=_MAX_CALLS,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.servicer, self._server)
        port = edge.bind(self._server, address)
        self.address = f"{address.rpartition(':')[0]}:{port}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(0.5).wait(5.0)
        self._threads.shutdown(wait=False, cancel_futures=True)


def statuses(pulse: Pulse) -> dict[str, Status]:
    """By the names that are asked for."""
    ready = _status(pulse.unready())
    return {
        STARTUP: _status(pulse.unstarted()),
        READINESS: ready,
        LIVENESS: _status(pulse.stuck()),
        **dict.fromkeys(("", *edge.SERVICES), ready),
    }


class PortKeeper:
    """Tells a health port what the pulse says, on a thread of its own: now, and about four times a second."""

    def __init__(self, port: HealthPort, pulse: Pulse) -> None:
        self._port = port
        self._pulse = pulse
        self._told: dict[str, Status] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.update()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def update(self) -> None:
        """Now. Who watches is told of changes alone."""
        with self._lock:
            for name, status in statuses(self._pulse).items():
                if self._told.get(name) != status:
                    self._port.servicer.set(name, status)
                    self._told[name] = status

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_SECONDS):
            try:
                self.update()
            except Exception:
                _log.exception("health_not_told")


def _status(fault: str | None) -> Status:
    served = health_pb2.HealthCheckResponse
    return int(served.SERVING if fault is None else served.NOT_SERVING)
