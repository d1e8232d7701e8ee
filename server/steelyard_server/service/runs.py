"""RunService."""

from __future__ import annotations

import numpy as np

from steelyard import wire
from steelyard.v1 import runs_pb2 as pb
from steelyard_server.runs.catalog import Catalog
from steelyard_server.runs.errors import Exhausted, Invalid
from steelyard_server.service import convert

MAX_HISTORY_IDS = 1 << 20


class RunService:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def CreateRun(self, request: pb.CreateRunRequest) -> pb.CreateRunResponse:
        spec = convert.spec_of(request.spec)
        self._catalog.create_run(spec, exist_ok=request.exist_ok)
        return pb.CreateRunResponse(run=self._run(spec.name))

    def GetRun(self, request: pb.GetRunRequest) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=self._run(request.name))

    def ListRuns(self, request: pb.ListRunsRequest) -> pb.ListRunsResponse:
        return pb.ListRunsResponse(runs=[convert.run(*run) for run in self._catalog.list_runs()])

    def DeleteRun(self, request: pb.DeleteRunRequest) -> pb.DeleteRunResponse:
        self._catalog.delete_run(request.name)
        return pb.DeleteRunResponse()

    def ChangePolicy(self, request: pb.ChangePolicyRequest) -> pb.ChangePolicyResponse:
        self._catalog.change_policy(request.name, *convert.policy_parts(request.policy))
        return pb.ChangePolicyResponse(run=self._run(request.name))

    def GetStats(self, request: pb.GetStatsRequest) -> pb.GetStatsResponse:
        return convert.stats(self._catalog.run(request.name).stats())

    def GetHistory(self, request: pb.GetHistoryRequest) -> pb.GetHistoryResponse:
        ids = convert.ids_of(request.ids)
        if len(ids) > MAX_HISTORY_IDS:
            raise Invalid(f"expected at most {MAX_HISTORY_IDS} ids; got {len(ids)}")
        rows = self._catalog.run(request.name).history(ids)
        counts = np.array([len(row) for row in rows], np.uint32)
        self._check_fits(4 * len(rows) + 12 * int(counts.sum()), f"the history of {len(rows)} ids")
        return pb.GetHistoryResponse(
            counts=wire.pack(counts),
            steps=wire.pack(np.array([step for row in rows for step, _ in row], np.uint64)),
            losses=wire.pack(np.array([loss for row in rows for _, loss in row], np.float32)),
        )

    def GetColumn(self, request: pb.GetColumnRequest) -> pb.GetColumnResponse:
        ids = convert.ids_of(request.ids) if request.HasField("ids") else None
        values = self._catalog.run(request.name).column(request.column, ids)
        self._check_fits(values.nbytes, f"the column of {len(values)} ids")
        return pb.GetColumnResponse(values=wire.pack(values, np.float32))

    def Observe(self, request: pb.ObserveRequest) -> pb.ObserveResponse:
        signals = convert.signals_of(request.signals)
        step = request.step if request.HasField("step") else None
        self._catalog.observe(request.name, step, convert.ids_of(request.ids), signals)
        return pb.ObserveResponse()

    def CloseStep(self, request: pb.CloseStepRequest) -> pb.CloseStepResponse:
        self._catalog.run(request.name).close_step(request.step)
        return pb.CloseStepResponse()

    def CreateBookmark(self, request: pb.CreateBookmarkRequest) -> pb.CreateBookmarkResponse:
        step = request.step if request.HasField("step") else None
        at = self._catalog.run(request.name).bookmark(request.bookmark, step)
        return pb.CreateBookmarkResponse(bookmark=pb.Bookmark(name=request.bookmark, step=at))

    def DeleteBookmark(self, request: pb.DeleteBookmarkRequest) -> pb.DeleteBookmarkResponse:
        self._catalog.run(request.name).delete_bookmark(request.bookmark)
        return pb.DeleteBookmarkResponse()

    def Rewind(self, request: pb.RewindRequest) -> pb.RewindResponse:
        to = _place(request.WhichOneof("to"), request.step, request.bookmark)
        self._catalog.run(request.name).rewind(to)
        return pb.RewindResponse(run=self._run(request.name))

    def Fork(self, request: pb.ForkRequest) -> pb.ForkResponse:
        at = _place(request.WhichOneof("at"), request.step, request.bookmark)
        self._catalog.fork_run(request.name, request.new_name, at, *convert.policy_parts(request.policy))
        return pb.ForkResponse(run=self._run(request.new_name))

    def GetBatch(self, request: pb.GetBatchRequest) -> pb.GetBatchResponse:
        return convert.batch(self._catalog.run(request.name).batch(request.step))

    def GetRetention(self, request: pb.GetRetentionRequest) -> pb.GetRetentionResponse:
        return convert.retention(self._catalog.run(request.name).retention())

    def _check_fits(self, size: int, what: str) -> None:
        limit = self._catalog.max_message_bytes
        if size > limit - 1024:
            raise Exhausted(
                f"{what} does not fit into a message of {limit} bytes; ask for fewer ids at a time"
            )

    def _run(self, name: str) -> pb.Run:
        return convert.run(self._catalog.run(name).info(), self._catalog.parent_of(name))


def _place(field: str | None, step: int, bookmark: str) -> int | str:
    if field is None:
        raise Invalid("expected a step or a bookmark; got neither")
    return step if field == "step" else bookmark
