"""Inputs to begin with: whole short lives, so that what is changed about them is near to what a server does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from steelyard import wire
from steelyard.structs import to_struct
from steelyard.v1 import admin_pb2, arrays_pb2, datasets_pb2, events_pb2, runs_pb2, server_pb2, trainer_pb2
from steelyard_server.catalogue import REQUIRED, Entry, entries
from tests.robustness.fuzz.inputs import PLACE, Item, call, packed, trainer

SIZE, BATCH = 48, 8
"""Of the dataset "d", which is there when an input begins, as the run "r" is."""

COLUMNS = (
    *("difficulty", "prior_loss", "conditional_loss", "quality", "group", "cluster"),
    *("domain", "score", "log_weight", "bucket", "ease"),
)
"""Static ones that "d" has."""
_WEIGHS = {"infobatch": {"weigh": {"method": "infobatch_rescale"}}}


def seeds() -> Iterator[bytes]:
    yield packed(_owner())
    close = call("CloseStep", runs_pb2.CloseStepRequest(name="r", step=0))
    yield packed([*_joins(), *_trains(4), close, _says(leave=trainer_pb2.Leave())])
    yield packed([*_joins(world=2), *_trains(2)])
    yield packed([*_joins(), *_trains(3), *_changes(), *_joins(attempt="b", stream=1)])
    yield packed(_operator())
    for entry in entries():
        yield packed(_lives_under(entry))


def _floats(*values: float) -> arrays_pb2.Array:
    return wire.pack(np.array(values, np.float32), np.float32)


def _ids(*values: int) -> arrays_pb2.Array:
    return wire.pack_ids(np.array(values, np.int64), SIZE)


def _signal(name: str, *values: float) -> arrays_pb2.Signal:
    return arrays_pb2.Signal(name=name, values=_floats(*values))


def _says(stream: int = 0, **message: Any) -> Item:
    return trainer(trainer_pb2.TrainerMessage(**message), stream=stream)


def _joins(run: str = "r", attempt: str = "a", world: int = 1, stream: int = 0) -> Iterator[Item]:
    for rank in range(world):
        join = trainer_pb2.Join(
            run=run,
            rank=rank,
            world_size=world,
            attempt=attempt,
            session=f"s{rank}",
            credit=4,
            fingerprint="f",
        )
        yield _says(stream + rank, join=join)


def _trains(steps: int) -> Iterator[Item]:
    """Reports without a digest, which the world fills in."""
    for step in range(steps):
        values = [0.25 * (1 + step + place) for place in range(BATCH)]
        signals = [_signal("loss", *values), _signal("el2n", *values), _signal("correct", *[1.0] * BATCH)]
        report = trainer_pb2.Report(step=step, signals=signals, want_weights=True)
        yield _says(report=report)
        yield _says(credit=trainer_pb2.Credit(batches=1))


def _policy(**parts: Mapping[str, Any]) -> runs_pb2.Policy:
    return runs_pb2.Policy(**{name: to_struct(part, name) for name, part in parts.items()})


def _changes() -> Iterator[Item]:
    yield call(
        "ChangePolicy", runs_pb2.ChangePolicyRequest(name="r", policy=_policy(draw={"method": "shuffle"}))
    )
    yield call("AppendExamples", datasets_pb2.AppendExamplesRequest(name="d", count=4, expected_size=SIZE))
    yield call("RetireIds", datasets_pb2.RetireIdsRequest(name="d", ids=_ids(1, 5, 7)))
    yield call("Rewind", runs_pb2.RewindRequest(name="r", step=1))


def _owner() -> Iterator[Item]:
    yield call("CreateDataset", datasets_pb2.CreateDatasetRequest(name="e", size=20, fingerprint="g"))
    yield call("GetDataset", datasets_pb2.GetDatasetRequest(name="d"))
    yield call("ListDatasets", datasets_pb2.ListDatasetsRequest())
    set_column = datasets_pb2.SetColumnRequest(name="d", column="quality", values=_floats(1, 2, 3), start=4)
    yield call("SetColumn", set_column)
    spec = runs_pb2.RunSpec(
        name="q",
        dataset="d",
        batch_size=4,
        seed=3,
        policy=_policy(draw={"method": "scored"}, weigh={"method": "importance"}),
        staleness=runs_pb2.Staleness(steps=2),
        report_timeout_seconds=60,
        history_size=4,
        retain_steps=100,
    )
    yield call("CreateRun", runs_pb2.CreateRunRequest(spec=spec, exist_ok=True))
    yield call("GetRun", runs_pb2.GetRunRequest(name="q"))
    yield call("ListRuns", runs_pb2.ListRunsRequest())
    yield call("GetStats", runs_pb2.GetStatsRequest(name="r"))
    observe = runs_pb2.ObserveRequest(name="r", ids=_ids(1, 2), signals=[_signal("loss", 1, 2)])
    yield call("Observe", observe)
    yield call("GetHistory", runs_pb2.GetHistoryRequest(name="r", ids=_ids(1, 2, 3)))
    yield call("GetColumn", runs_pb2.GetColumnRequest(name="r", column="last_loss", ids=_ids(1, 2)))
    yield call("CreateBookmark", runs_pb2.CreateBookmarkRequest(name="r", bookmark="mark", step=0))
    yield call("Fork", runs_pb2.ForkRequest(name="r", new_name="s", bookmark="mark"))
    yield call("DeleteBookmark", runs_pb2.DeleteBookmarkRequest(name="r", bookmark="mark"))
    yield call("CloseStep", runs_pb2.CloseStepRequest(name="r", step=0))
    yield call("GetBatch", runs_pb2.GetBatchRequest(name="r", step=0))
    yield call("GetRetention", runs_pb2.GetRetentionRequest(name="r"))
    yield call("StreamEvents", events_pb2.StreamEventsRequest(name="r"))
    yield call("DeleteRun", runs_pb2.DeleteRunRequest(name="q"))
    yield call("DeleteDataset", datasets_pb2.DeleteDatasetRequest(name="e"))


def _operator() -> Iterator[Item]:
    yield call("GetServer", server_pb2.GetServerRequest())
    yield call("Backup", admin_pb2.BackupRequest(to=f"{PLACE}/weekly"))
    yield call("ListBackups", admin_pb2.ListBackupsRequest(to=f"{PLACE}/weekly"))
    yield call("ListBackups", admin_pb2.ListBackupsRequest(to=f"{PLACE}/.."))
    yield call("Check", admin_pb2.CheckRequest(deep=True))


def _lives_under(entry: Entry) -> Iterator[Item]:
    """A few steps under one method with all its parameters written out."""
    parameters = {
        one.name: one.default
        for one in entry.parameters
        if one.default is not REQUIRED and one.default is not None
    }
    part = {"method": entry.name, **parameters, **dict(getattr(entry.method, "example", {}))}
    # A draw that reads losses and a rule that does would count them twice.
    others = {"weigh": {"draw": {"method": "shuffle"}}, "draw": _WEIGHS.get(entry.name, {})}.get(
        entry.family, {}
    )
    policy = _policy(**{**others, entry.family: part})
    yield call("ChangePolicy", runs_pb2.ChangePolicyRequest(name="r", policy=policy))
    yield from _joins()
    yield from _trains(3)
    yield call("GetBatch", runs_pb2.GetBatchRequest(name="r", step=1))
    yield call("Fork", runs_pb2.ForkRequest(name="r", new_name="s", step=1))
    yield from _joins("s", "b", stream=1)
