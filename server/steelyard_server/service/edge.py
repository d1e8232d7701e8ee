"""The gRPC edge: one asyncio server with every service on it, its options, and where it listens."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Sequence
from concurrent.futures import Executor

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from steelyard.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    datasets_pb2,
    datasets_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
)
from steelyard_server.config import Settings
from steelyard_server.keeping.keeper import Keeper
from steelyard_server.runs.catalog import Catalog
from steelyard_server.service.about import ServerService
from steelyard_server.service.admin import AdminService
from steelyard_server.service.calls import offloaded
from steelyard_server.service.datasets import DatasetService
from steelyard_server.service.events import EventService
from steelyard_server.service.guard import Guard
from steelyard_server.service.once import Once
from steelyard_server.service.runs import RunService
from steelyard_server.service.trainer import TrainerService

SERVICES = (
    datasets_pb2.DESCRIPTOR.services_by_name["DatasetService"].full_name,
    runs_pb2.DESCRIPTOR.services_by_name["RunService"].full_name,
    trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"].full_name,
    events_pb2.DESCRIPTOR.services_by_name["EventService"].full_name,
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
    server_pb2.DESCRIPTOR.services_by_name["ServerService"].full_name,
)

_COUNTING = frozenset(
    {
        "DatasetService.CreateDataset",
        "DatasetService.DeleteDataset",
        "RunService.CreateRun",
        "RunService.DeleteRun",
        "RunService.Fork",
        "RunService.Observe",
    }
)
"""What a repetition would do twice, or refuse. No answer of theirs is large, and so they may be remembered."""

Options = list[tuple[str, int]]

_NEVER = (1 << 31) - 1
"""Milliseconds; gRPC's own word for it."""


def build(
    settings: Settings,
    catalog: Catalog,
    keeper: Keeper,
    calls: Executor,
    keeping: Executor,
    health_servicer: health.aio.HealthServicer,
    guard: Guard,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> grpc.aio.Server:
    """The server, not yet bound. Unary calls are answered on `calls`, those that may take hours on
    `keeping`; `interceptors`: the outermost first, outside of
    the guard.

    For the event loop that is to run it.
    """
    server = grpc.aio.server(options=_options(settings), interceptors=[*interceptors, guard])
    instance = uuid.uuid4().hex
    once = Once(instance, _COUNTING)
    about = offloaded(ServerService(instance), calls)
    server_pb2_grpc.add_ServerServiceServicer_to_server(about, server)
    datasets = offloaded(DatasetService(catalog), calls, once)
    datasets_pb2_grpc.add_DatasetServiceServicer_to_server(datasets, server)
    runs = offloaded(RunService(catalog), calls, once)
    runs_pb2_grpc.add_RunServiceServicer_to_server(runs, server)
    events = offloaded(EventService(catalog), calls)
    events_pb2_grpc.add_EventServiceServicer_to_server(events, server)
    trainer_pb2_grpc.add_TrainerServiceServicer_to_server(TrainerService(catalog), server)
    admin = offloaded(AdminService(keeper), keeping)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    # Both for admins alone where there is an access file (security/rules.py).
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    channelz.add_channelz_servicer(server)
    return server


def bind(
    server: grpc.aio.Server | grpc.Server, address: str, credentials: grpc.ServerCredentials | None = None
) -> int:
    """Has `server` listen on `address`, in plaintext where there are no `credentials`; the port bound. OSError, which
    says why, where it cannot be."""
    try:
        _probe(address)
    except OSError as error:
        raise cannot_listen(address, error) from error
    try:
        if credentials is not None:
            return server.add_secure_port(address, credentials)
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {str(error).partition(';')[0]}") from error


def cannot_listen(address: str, error: OSError) -> OSError:
    why = error.strerror or str(error)
    return OSError(f"cannot listen on {address}: {why[0].lower()}{why[1:]}")


def _options(settings: Settings) -> Options:
    return [
        # Two servers on one port would share its callers between them.
        ("grpc.so_reuseport", 0),
        *_limits(settings),
        ("grpc.max_receive_message_length", int(settings.max_message_bytes)),
        ("grpc.max_send_message_length", -1),
        # A peer whose machine died does not say so: its rank is free again after these times. A client asks
        # for a rank that is taken for longer than that (membership.py).
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ]


def _limits(settings: Settings) -> Options:
    age = settings.max_connection_age_seconds
    return [
        # Between the two gRPC refuses by chance.
        ("grpc.max_metadata_size", int(settings.max_metadata_bytes)),
        ("grpc.absolute_max_metadata_size", int(settings.max_metadata_bytes)),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        ("grpc.max_connection_age_ms", _milliseconds(age) if age else _NEVER),
        ("grpc.max_connection_age_grace_ms", _milliseconds(settings.max_connection_age_grace_seconds)),
        ("grpc.server_handshake_timeout_ms", _milliseconds(settings.handshake_timeout_seconds)),
    ]


def _milliseconds(seconds: float) -> int:
    return min(max(1, round(seconds * 1000)), _NEVER)


def _probe(address: str) -> None:
    """Binds `address` as gRPC will, and lets go of it: gRPC tells no more than that it could not, and prints the why.

    OSError where none of what the host's name stands for can be bound; one that can is enough for gRPC.
    """
    if address.startswith("unix:"):
        return
    host, _, port = address.rpartition(":")
    refused: OSError | None = None
    for family, kind, protocol, _, place in socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
                return
        except OSError as error:
            refused = refused or error
    if refused is not None:
        raise refused
