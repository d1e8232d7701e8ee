"""DatasetService."""

from __future__ import annotations

from steelyard.v1 import datasets_pb2 as pb
from steelyard_server.runs.catalog import Catalog
from steelyard_server.runs.errors import Invalid
from steelyard_server.service import convert


class DatasetService:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def CreateDataset(self, request: pb.CreateDatasetRequest) -> pb.CreateDatasetResponse:
        info = self._catalog.create_dataset(
            request.name, request.size, fingerprint=request.fingerprint, exist_ok=request.exist_ok
        )
        return pb.CreateDatasetResponse(dataset=convert.dataset(info))

    def GetDataset(self, request: pb.GetDatasetRequest) -> pb.GetDatasetResponse:
        return pb.GetDatasetResponse(dataset=convert.dataset(self._catalog.dataset(request.name)))

    def ListDatasets(self, request: pb.ListDatasetsRequest) -> pb.ListDatasetsResponse:
        return pb.ListDatasetsResponse(
            datasets=[convert.dataset(info) for info in self._catalog.list_datasets()]
        )

    def DeleteDataset(self, request: pb.DeleteDatasetRequest) -> pb.DeleteDatasetResponse:
        self._catalog.delete_dataset(request.name)
        return pb.DeleteDatasetResponse()

    def AppendExamples(self, request: pb.AppendExamplesRequest) -> pb.AppendExamplesResponse:
        info = self._catalog.append_examples(request.name, request.count, request.expected_size)
        return pb.AppendExamplesResponse(dataset=convert.dataset(info))

    def RetireIds(self, request: pb.RetireIdsRequest) -> pb.RetireIdsResponse:
        info = self._catalog.retire_ids(request.name, convert.ids_of(request.ids))
        return pb.RetireIdsResponse(dataset=convert.dataset(info))

    def SetColumn(self, request: pb.SetColumnRequest) -> pb.SetColumnResponse:
        values = convert.floats(request.values, "values")
        where = request.WhichOneof("where")
        if where is None:
            raise Invalid("expected either ids or a start; got neither")
        ids = convert.ids_of(request.ids) if where == "ids" else None
        info = self._catalog.set_column(request.name, request.column, values, ids=ids, start=request.start)
        return pb.SetColumnResponse(dataset=convert.dataset(info))
