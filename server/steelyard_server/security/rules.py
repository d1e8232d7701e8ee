"""What each call needs: the table of every RPC. Pure; what is in no row is allowed to nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from steelyard_server.runs.errors import Missing
from steelyard_server.security.errors import Forbidden
from steelyard_server.security.grants import Kind, Rights, Verb


@dataclass(frozen=True, slots=True)
class Need:
    """A verb on what a field of the request names."""

    verb: Verb
    kind: Kind
    field: str
    """Dotted, from the request."""
    creates: bool = False
    """The call makes what is named, so there is nothing to hide."""
    of_run: bool = False
    """The field names a run; what is needed is needed on its dataset."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one call needs; all of it together."""

    needs: tuple[Need, ...] = ()
    everywhere: Verb | None = None
    """A verb that one grant gives on all runs and datasets."""
    lists: tuple[Kind, str, str] | None = None
    """The answer shows what the caller may read: the kind, the repeated field, and where in it the name is."""
    let_in: bool = False
    """For everyone whose credentials are known, whatever they are granted."""
    open: bool = False
    """For everyone, without credentials."""
    at_join: bool = False
    """The needs are those of the Join that a stream begins with."""


def _run(verb: Verb) -> Row:
    return Row((Need(verb, "run", "name"),))


def _dataset(verb: Verb) -> Row:
    return Row((Need(verb, "dataset", "name"),))


_DATASETS = "/steelyard.v1.DatasetService/"
_RUNS = "/steelyard.v1.RunService/"

METHODS: dict[str, Row] = {
    _DATASETS + "CreateDataset": Row((Need("admin", "dataset", "name", creates=True),)),
    _DATASETS + "GetDataset": _dataset("read"),
    _DATASETS + "ListDatasets": Row(lists=("dataset", "datasets", "name")),
    _DATASETS + "DeleteDataset": _dataset("admin"),
    _DATASETS + "AppendExamples": _dataset("admin"),
    _DATASETS + "RetireIds": _dataset("admin"),
    _DATASETS + "SetColumn": _dataset("admin"),
    _RUNS + "CreateRun": Row(
        (Need("admin", "run", "spec.name", creates=True), Need("read", "dataset", "spec.dataset"))
    ),
    _RUNS + "GetRun": _run("read"),
    _RUNS + "ListRuns": Row(lists=("run", "runs", "spec.name")),
    _RUNS + "DeleteRun": _run("admin"),
    _RUNS + "ChangePolicy": _run("admin"),
    _RUNS + "GetStats": _run("read"),
    _RUNS + "GetHistory": _run("read"),
    _RUNS + "GetColumn": _run("read"),
    _RUNS + "Observe": _run("report"),
    _RUNS + "CloseStep": _run("report"),
    # Trainers make one with each checkpoint of theirs; deleting one may let go of what it kept.
    _RUNS + "CreateBookmark": _run("report"),
    _RUNS + "DeleteBookmark": _run("admin"),
    _RUNS + "Rewind": _run("admin"),
    _RUNS + "Fork": Row(
        (
            Need("read", "run", "name"),
            Need("admin", "run", "new_name", creates=True),
            Need("read", "dataset", "name", of_run=True),
        )
    ),
    _RUNS + "GetBatch": _run("read"),
    _RUNS + "GetRetention": _run("read"),
    "/steelyard.v1.EventService/StreamEvents": _run("read"),
    # What a server is and can do: for everyone who is let in.
    "/steelyard.v1.ServerService/GetServer": Row(let_in=True),
    "/steelyard.v1.TrainerService/Train": Row(
        (Need("draw", "run", "run"), Need("report", "run", "run")), at_join=True
    ),
}
SERVICES: dict[str, Row] = {
    "steelyard.v1.AdminService": Row(everywhere="admin"),
    "grpc.health.v1.Health": Row(open=True),
    "grpc.reflection.v1alpha.ServerReflection": Row(everywhere="admin"),
    "grpc.reflection.v1.ServerReflection": Row(everywhere="admin"),
    "grpc.channelz.v1.Channelz": Row(everywhere="admin"),
}
"""Of all methods of a service that are in no row of their own."""


def row(method: str) -> Row | None:
    """The row of "/package.Service/Method"; None where there is none."""
    return METHODS.get(method) or SERVICES.get(method.strip("/").partition("/")[0])


def judge(row: Row | None, rights: Rights, request: Any, dataset_of: Callable[[str], str | None]) -> None:
    """Raises Missing, as for what is not there, for a name on which the caller holds no verb at all, and Forbidden
    where it holds others. Follows from names alone; `dataset_of` a run is asked for only by who may read that run."""
    if row is None:
        raise Forbidden("expected a call that the table of rights knows; this one is granted to nobody")
    if row.everywhere is not None and row.everywhere not in rights.everywhere:
        raise Forbidden(
            f"expected {row.everywhere} to be granted on all runs and datasets; it is not granted to this caller"
        )
    for need in row.needs:
        name: str | None = value_at(request, need.field)
        if need.of_run:
            name = dataset_of(name or "")
        if name is None or rights.holds(need.verb, need.kind, name):
            continue
        if need.creates or rights.knows_of(need.kind, name):
            raise Forbidden(
                f"expected {need.verb} to be granted on {need.kind} {name!r}; it is not granted to this caller"
            )
        raise Missing(f"no {need.kind} {name!r}")


def shown(row: Row, rights: Rights, response: Any) -> Any:
    """The answer with only what the caller may read; changed in place."""
    if row.lists is not None:
        kind, field, name = row.lists
        listed = getattr(response, field)
        kept = [one for one in listed if rights.holds("read", kind, value_at(one, name))]
        if len(kept) < len(listed):
            kept = [type(one).FromString(one.SerializeToString()) for one in kept]
            del listed[:]
            listed.extend(kept)
    return response


def value_at(message: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), message)
