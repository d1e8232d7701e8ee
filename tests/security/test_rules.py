"""The table of what each call needs is whole, and names fields that there are."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory

from steelyard_server.config import Settings
from steelyard_server.security import rules
from steelyard_server.security.gatekeeper import Gatekeeper
from steelyard_server.service import edge
from steelyard_server.service.guard import Guard


def served() -> dict[str, grpc.RpcMethodHandler]:
    """Every method that a server answers, by its path."""
    found: dict[str, grpc.RpcMethodHandler] = {}

    async def listen():
        settings = Settings(data_dir=Path("nowhere"))
        with ThreadPoolExecutor(1) as calls:
            guard = Guard(settings, Gatekeeper(settings, calls), lambda run: None)
            real = grpc.aio.server

            def heard(*args, **kwargs):
                server = real(*args, **kwargs)
                before = server.add_registered_method_handlers

                def add(service, handlers):
                    found.update({f"/{service}/{name}": handler for name, handler in handlers.items()})
                    before(service, handlers)

                cast("Any", server).add_registered_method_handlers = add
                return server

            cast("Any", grpc.aio).server = heard
            try:
                health = edge.health.aio.HealthServicer()
                edge.build(settings, cast("Any", _NoCatalog), cast("Any", None), calls, calls, health, guard)
            finally:
                cast("Any", grpc.aio).server = real

    asyncio.run(listen())
    return found


class _NoCatalog:
    max_message_bytes = 1


SERVED = served()


def test_what_is_served_is_known():
    services = {path.split("/")[1] for path in SERVED}
    assert services >= {
        f"steelyard.v1.{name}Service" for name in ("Dataset", "Run", "Trainer", "Event", "Admin")
    }
    assert services >= {"grpc.health.v1.Health", "grpc.channelz.v1.Channelz"}


@pytest.mark.parametrize("method", sorted(SERVED))
def test_every_call_has_a_row(method):
    assert rules.row(method) is not None, f"{method} needs a row in security/rules.py"


def test_every_row_is_of_a_call_that_is_served():
    assert set(rules.METHODS) <= set(SERVED)


@pytest.mark.parametrize("method", sorted(rules.METHODS))
def test_the_fields_of_a_row_are_there(method):
    service, name = method[1:].split("/")
    described = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    row = rules.METHODS[method]
    request: Any = message_factory.GetMessageClass(described.input_type)()
    for need in row.needs:
        start = request.messages.add().join if row.at_join else request
        assert rules.value_at(start, need.field) == ""
    if row.lists is not None:
        _, field, path = row.lists
        answer = message_factory.GetMessageClass(described.output_type)()
        assert rules.value_at(getattr(answer, field).add(), path) == ""
    assert row.needs or row.lists or row.let_in, "a row that needs nothing lets everyone in"


def test_what_needs_no_grant_tells_of_nothing_that_is_somebody_s():
    assert [name for name, row in rules.METHODS.items() if row.let_in] == [
        "/steelyard.v1.ServerService/GetServer"
    ]


def test_only_health_is_open():
    assert [name for name, row in {**rules.METHODS, **rules.SERVICES}.items() if row.open] == [
        "grpc.health.v1.Health"
    ]
