"""What the fuzzer plays: a list of messages as bytes, each for one call or for one of two trainers' streams.

kind      1 byte: a place in CALLS, or FIRST_STREAM, FIRST_STREAM + 1
length    2 bytes, little-endian
message   that many bytes: the request of the call, or a TrainRequest
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from google.protobuf.message import Message

from steelyard.v1 import admin_pb2, datasets_pb2, events_pb2, runs_pb2, server_pb2, trainer_pb2

# A new call goes to the end, so that the corpus keeps its meaning.
CALLS: tuple[tuple[str, type[Message]], ...] = (
    ("CreateDataset", datasets_pb2.CreateDatasetRequest),
    ("GetDataset", datasets_pb2.GetDatasetRequest),
    ("ListDatasets", datasets_pb2.ListDatasetsRequest),
    ("DeleteDataset", datasets_pb2.DeleteDatasetRequest),
    ("AppendExamples", datasets_pb2.AppendExamplesRequest),
    ("RetireIds", datasets_pb2.RetireIdsRequest),
    ("SetColumn", datasets_pb2.SetColumnRequest),
    ("CreateRun", runs_pb2.CreateRunRequest),
    ("GetRun", runs_pb2.GetRunRequest),
    ("ListRuns", runs_pb2.ListRunsRequest),
    ("DeleteRun", runs_pb2.DeleteRunRequest),
    ("ChangePolicy", runs_pb2.ChangePolicyRequest),
    ("GetStats", runs_pb2.GetStatsRequest),
    ("GetHistory", runs_pb2.GetHistoryRequest),
    ("GetColumn", runs_pb2.GetColumnRequest),
    ("Observe", runs_pb2.ObserveRequest),
    ("CloseStep", runs_pb2.CloseStepRequest),
    ("CreateBookmark", runs_pb2.CreateBookmarkRequest),
    ("DeleteBookmark", runs_pb2.DeleteBookmarkRequest),
    ("Rewind", runs_pb2.RewindRequest),
    ("Fork", runs_pb2.ForkRequest),
    ("GetBatch", runs_pb2.GetBatchRequest),
    ("GetRetention", runs_pb2.GetRetentionRequest),
    ("StreamEvents", events_pb2.StreamEventsRequest),
    ("GetServer", server_pb2.GetServerRequest),
    ("Backup", admin_pb2.BackupRequest),
    ("ListBackups", admin_pb2.ListBackupsRequest),
    ("Check", admin_pb2.CheckRequest),
)
FIRST_STREAM = 200
STREAMS = 2
PLACE = "@"
"""What a place of backups begins with stands for the folder where they go."""
MOST_MESSAGES = 32
"""Of an input; what follows is left out."""

_KINDS = {name: kind for kind, (name, _) in enumerate(CALLS)}


@dataclass(frozen=True)
class Item:
    kind: int
    data: bytes

    @property
    def stream(self) -> int | None:
        """Which stream it is for; None: a call."""
        return self.kind - FIRST_STREAM if self.kind >= FIRST_STREAM else None

    @property
    def type(self) -> type[Message]:
        return trainer_pb2.TrainRequest if self.stream is not None else CALLS[self.kind][1]

    @property
    def name(self) -> str:
        return "Train" if self.stream is not None else CALLS[self.kind][0]


def call(name: str, request: Message) -> Item:
    return Item(_KINDS[name], request.SerializeToString(deterministic=True))


def trainer(*messages: trainer_pb2.TrainerMessage, stream: int = 0) -> Item:
    return Item(
        FIRST_STREAM + stream,
        trainer_pb2.TrainRequest(messages=messages).SerializeToString(deterministic=True),
    )


def packed(items: Iterable[Item]) -> bytes:
    return b"".join(
        bytes([item.kind]) + len(item.data[:0xFFFF]).to_bytes(2, "little") + item.data[:0xFFFF]
        for item in items
    )


def unpacked(data: bytes) -> list[Item]:
    """Any bytes are an input: a kind that is none is taken modulo those there are."""
    return list(_unpacked(data))[:MOST_MESSAGES]


def _unpacked(data: bytes) -> Iterator[Item]:
    place = 0
    while place + 3 <= len(data):
        kind, length = data[place], int.from_bytes(data[place + 1 : place + 3], "little")
        kind = FIRST_STREAM + kind % STREAMS if kind >= FIRST_STREAM else kind % len(CALLS)
        yield Item(kind, data[place + 3 : place + 3 + length])
        place += 3 + length
