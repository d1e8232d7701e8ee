"""Steelyard: a service that remembers the loss of every training example and decides which come next.

    client = steelyard.connect("sampler:7077")
    client.create_dataset("stdlib", size=100_000, exist_ok=True)
    run = client.create_run("gpt-a", dataset="stdlib", batch_size=256, exist_ok=True)
    with run.join() as session:
        for batch in session:
            losses = train(batch.ids)
            weights = session.report(batch, losses)

Importing this package loads neither gRPC nor numpy; the names below bring what they need when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# `forking` before anything that imports gRPC: it switches gRPC's fork handlers off.
from steelyard import errors
from steelyard import forking as _forking  # noqa: F401
from steelyard.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    ForkedSession,
    HandshakeFailed,
    Internal,
    InvalidArgument,
    MismatchedLosses,
    MissingSignalWarning,
    NotFound,
    PermissionDenied,
    ReportRefused,
    ResourceExhausted,
    SessionClosed,
    StalenessError,
    SteelyardError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

# A function of the same name as its module: imported here, so that the function is what the name means from now on.
from steelyard.local import local

if TYPE_CHECKING:
    from steelyard import events, testing, weigh
    from steelyard.batch import Batch
    from steelyard.client import Client, connect
    from steelyard.credentials import Credentials
    from steelyard.info import DatasetInfo, Retention, RunInfo, Stats
    from steelyard.run import Run
    from steelyard.session import Session
    from steelyard.weighing import PendingWeights

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Batch",
    "Client",
    "Credentials",
    "DataLoss",
    "DatasetInfo",
    "DeadlineExceeded",
    "FailedPrecondition",
    "ForkedSession",
    "HandshakeFailed",
    "Internal",
    "InvalidArgument",
    "MismatchedLosses",
    "MissingSignalWarning",
    "NotFound",
    "PendingWeights",
    "PermissionDenied",
    "ReportRefused",
    "ResourceExhausted",
    "Retention",
    "Run",
    "RunInfo",
    "Session",
    "SessionClosed",
    "StalenessError",
    "Stats",
    "SteelyardError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "connect",
    "errors",
    "events",
    "local",
    "testing",
    "weigh",
]

_HOMES = {
    "Batch": "batch",
    "Client": "client",
    "Credentials": "credentials",
    "DatasetInfo": "info",
    "PendingWeights": "weighing",
    "Retention": "info",
    "Run": "run",
    "RunInfo": "info",
    "Session": "session",
    "Stats": "info",
    "connect": "client",
}
_MODULES = ("events", "testing", "torch", "weigh")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"steelyard.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'steelyard' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"steelyard.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
