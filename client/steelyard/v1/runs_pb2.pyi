from google.protobuf import struct_pb2 as _struct_pb2
from steelyard.v1 import arrays_pb2 as _arrays_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OnNonfinite(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_NONFINITE_UNSPECIFIED: _ClassVar[OnNonfinite]
    ON_NONFINITE_SKIP: _ClassVar[OnNonfinite]
    ON_NONFINITE_REJECT: _ClassVar[OnNonfinite]
ON_NONFINITE_UNSPECIFIED: OnNonfinite
ON_NONFINITE_SKIP: OnNonfinite
ON_NONFINITE_REJECT: OnNonfinite

class Policy(_message.Message):
    __slots__ = ("draw", "weigh", "mix")
    DRAW_FIELD_NUMBER: _ClassVar[int]
    WEIGH_FIELD_NUMBER: _ClassVar[int]
    MIX_FIELD_NUMBER: _ClassVar[int]
    draw: _struct_pb2.Struct
    weigh: _struct_pb2.Struct
    mix: _struct_pb2.Struct
    def __init__(self, draw: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., weigh: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., mix: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Staleness(_message.Message):
    __slots__ = ("steps", "any")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ANY_FIELD_NUMBER: _ClassVar[int]
    steps: int
    any: bool
    def __init__(self, steps: _Optional[int] = ..., any: bool = ...) -> None: ...

class RunSpec(_message.Message):
    __slots__ = ("name", "dataset", "batch_size", "seed", "policy", "staleness", "on_nonfinite", "report_timeout_seconds", "history_size", "retain_steps")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    ON_NONFINITE_FIELD_NUMBER: _ClassVar[int]
    REPORT_TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_SIZE_FIELD_NUMBER: _ClassVar[int]
    RETAIN_STEPS_FIELD_NUMBER: _ClassVar[int]
    name: str
    dataset: str
    batch_size: int
    seed: int
    policy: Policy
    staleness: Staleness
    on_nonfinite: OnNonfinite
    report_timeout_seconds: float
    history_size: int
    retain_steps: int
    def __init__(self, name: _Optional[str] = ..., dataset: _Optional[str] = ..., batch_size: _Optional[int] = ..., seed: _Optional[int] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., staleness: _Optional[_Union[Staleness, _Mapping]] = ..., on_nonfinite: _Optional[_Union[OnNonfinite, str]] = ..., report_timeout_seconds: _Optional[float] = ..., history_size: _Optional[int] = ..., retain_steps: _Optional[int] = ...) -> None: ...

class Bookmark(_message.Message):
    __slots__ = ("name", "step")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    name: str
    step: int
    def __init__(self, name: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("spec", "next_step", "closed_steps", "oldest_step", "dataset_size", "attempt", "bookmarks", "parent", "parent_step", "missing_inputs")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    CLOSED_STEPS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_STEP_FIELD_NUMBER: _ClassVar[int]
    DATASET_SIZE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    BOOKMARKS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_FIELD_NUMBER: _ClassVar[int]
    MISSING_INPUTS_FIELD_NUMBER: _ClassVar[int]
    spec: RunSpec
    next_step: int
    closed_steps: int
    oldest_step: int
    dataset_size: int
    attempt: str
    bookmarks: _containers.RepeatedCompositeFieldContainer[Bookmark]
    parent: str
    parent_step: int
    missing_inputs: _containers.RepeatedCompositeFieldContainer[MissingInput]
    def __init__(self, spec: _Optional[_Union[RunSpec, _Mapping]] = ..., next_step: _Optional[int] = ..., closed_steps: _Optional[int] = ..., oldest_step: _Optional[int] = ..., dataset_size: _Optional[int] = ..., attempt: _Optional[str] = ..., bookmarks: _Optional[_Iterable[_Union[Bookmark, _Mapping]]] = ..., parent: _Optional[str] = ..., parent_step: _Optional[int] = ..., missing_inputs: _Optional[_Iterable[_Union[MissingInput, _Mapping]]] = ...) -> None: ...

class MissingInput(_message.Message):
    __slots__ = ("name", "text", "column")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: str
    column: bool
    def __init__(self, name: _Optional[str] = ..., text: _Optional[str] = ..., column: bool = ...) -> None: ...

class CreateRunRequest(_message.Message):
    __slots__ = ("spec", "exist_ok")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    EXIST_OK_FIELD_NUMBER: _ClassVar[int]
    spec: RunSpec
    exist_ok: bool
    def __init__(self, spec: _Optional[_Union[RunSpec, _Mapping]] = ..., exist_ok: bool = ...) -> None: ...

class CreateRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...

class DeleteRunRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ChangePolicyRequest(_message.Message):
    __slots__ = ("name", "policy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    name: str
    policy: Policy
    def __init__(self, name: _Optional[str] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ...) -> None: ...

class ChangePolicyResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("next_step", "closed_steps", "folded_steps", "state_version", "served_ids", "reported_losses", "duplicate_reports", "late_reports", "refused_reports", "nonfinite_losses", "closed_by_timeout", "drawable", "never_reported", "effective_sample_ratio", "mean_loss", "journal_records", "connected_ranks", "oldest_step", "journal_bytes", "ungrouped", "group_shares", "missing_inputs")
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    CLOSED_STEPS_FIELD_NUMBER: _ClassVar[int]
    FOLDED_STEPS_FIELD_NUMBER: _ClassVar[int]
    STATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVED_IDS_FIELD_NUMBER: _ClassVar[int]
    REPORTED_LOSSES_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_REPORTS_FIELD_NUMBER: _ClassVar[int]
    LATE_REPORTS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_REPORTS_FIELD_NUMBER: _ClassVar[int]
    NONFINITE_LOSSES_FIELD_NUMBER: _ClassVar[int]
    CLOSED_BY_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    DRAWABLE_FIELD_NUMBER: _ClassVar[int]
    NEVER_REPORTED_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_SAMPLE_RATIO_FIELD_NUMBER: _ClassVar[int]
    MEAN_LOSS_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_RECORDS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_RANKS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_STEP_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNGROUPED_FIELD_NUMBER: _ClassVar[int]
    GROUP_SHARES_FIELD_NUMBER: _ClassVar[int]
    MISSING_INPUTS_FIELD_NUMBER: _ClassVar[int]
    next_step: int
    closed_steps: int
    folded_steps: int
    state_version: int
    served_ids: int
    reported_losses: int
    duplicate_reports: int
    late_reports: int
    refused_reports: int
    nonfinite_losses: int
    closed_by_timeout: int
    drawable: int
    never_reported: int
    effective_sample_ratio: float
    mean_loss: float
    journal_records: int
    connected_ranks: int
    oldest_step: int
    journal_bytes: int
    ungrouped: int
    group_shares: _containers.RepeatedScalarFieldContainer[float]
    missing_inputs: _containers.RepeatedCompositeFieldContainer[MissingInput]
    def __init__(self, next_step: _Optional[int] = ..., closed_steps: _Optional[int] = ..., folded_steps: _Optional[int] = ..., state_version: _Optional[int] = ..., served_ids: _Optional[int] = ..., reported_losses: _Optional[int] = ..., duplicate_reports: _Optional[int] = ..., late_reports: _Optional[int] = ..., refused_reports: _Optional[int] = ..., nonfinite_losses: _Optional[int] = ..., closed_by_timeout: _Optional[int] = ..., drawable: _Optional[int] = ..., never_reported: _Optional[int] = ..., effective_sample_ratio: _Optional[float] = ..., mean_loss: _Optional[float] = ..., journal_records: _Optional[int] = ..., connected_ranks: _Optional[int] = ..., oldest_step: _Optional[int] = ..., journal_bytes: _Optional[int] = ..., ungrouped: _Optional[int] = ..., group_shares: _Optional[_Iterable[float]] = ..., missing_inputs: _Optional[_Iterable[_Union[MissingInput, _Mapping]]] = ...) -> None: ...

class GetHistoryRequest(_message.Message):
    __slots__ = ("name", "ids")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    ids: _arrays_pb2.Array
    def __init__(self, name: _Optional[str] = ..., ids: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ...) -> None: ...

class GetHistoryResponse(_message.Message):
    __slots__ = ("counts", "steps", "losses")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    counts: _arrays_pb2.Array
    steps: _arrays_pb2.Array
    losses: _arrays_pb2.Array
    def __init__(self, counts: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., steps: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., losses: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ...) -> None: ...

class GetColumnRequest(_message.Message):
    __slots__ = ("name", "column", "ids")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    column: str
    ids: _arrays_pb2.Array
    def __init__(self, name: _Optional[str] = ..., column: _Optional[str] = ..., ids: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ...) -> None: ...

class GetColumnResponse(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _arrays_pb2.Array
    def __init__(self, values: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ...) -> None: ...

class ObserveRequest(_message.Message):
    __slots__ = ("name", "ids", "signals", "step")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    name: str
    ids: _arrays_pb2.Array
    signals: _containers.RepeatedCompositeFieldContainer[_arrays_pb2.Signal]
    step: int
    def __init__(self, name: _Optional[str] = ..., ids: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., signals: _Optional[_Iterable[_Union[_arrays_pb2.Signal, _Mapping]]] = ..., step: _Optional[int] = ...) -> None: ...

class ObserveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloseStepRequest(_message.Message):
    __slots__ = ("name", "step")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    name: str
    step: int
    def __init__(self, name: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class CloseStepResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CreateBookmarkRequest(_message.Message):
    __slots__ = ("name", "bookmark", "step")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BOOKMARK_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    name: str
    bookmark: str
    step: int
    def __init__(self, name: _Optional[str] = ..., bookmark: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class CreateBookmarkResponse(_message.Message):
    __slots__ = ("bookmark",)
    BOOKMARK_FIELD_NUMBER: _ClassVar[int]
    bookmark: Bookmark
    def __init__(self, bookmark: _Optional[_Union[Bookmark, _Mapping]] = ...) -> None: ...

class DeleteBookmarkRequest(_message.Message):
    __slots__ = ("name", "bookmark")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BOOKMARK_FIELD_NUMBER: _ClassVar[int]
    name: str
    bookmark: str
    def __init__(self, name: _Optional[str] = ..., bookmark: _Optional[str] = ...) -> None: ...

class DeleteBookmarkResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RewindRequest(_message.Message):
    __slots__ = ("name", "step", "bookmark")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    BOOKMARK_FIELD_NUMBER: _ClassVar[int]
    name: str
    step: int
    bookmark: str
    def __init__(self, name: _Optional[str] = ..., step: _Optional[int] = ..., bookmark: _Optional[str] = ...) -> None: ...

class RewindResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ForkRequest(_message.Message):
    __slots__ = ("name", "new_name", "step", "bookmark", "policy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NEW_NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    BOOKMARK_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    name: str
    new_name: str
    step: int
    bookmark: str
    policy: Policy
    def __init__(self, name: _Optional[str] = ..., new_name: _Optional[str] = ..., step: _Optional[int] = ..., bookmark: _Optional[str] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ...) -> None: ...

class ForkResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class GetBatchRequest(_message.Message):
    __slots__ = ("name", "step")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    name: str
    step: int
    def __init__(self, name: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class GetBatchResponse(_message.Message):
    __slots__ = ("step", "ids", "probability", "weight", "state_version", "digest")
    STEP_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    STATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    step: int
    ids: _arrays_pb2.Array
    probability: _arrays_pb2.Array
    weight: _arrays_pb2.Array
    state_version: int
    digest: int
    def __init__(self, step: _Optional[int] = ..., ids: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., probability: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., weight: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., state_version: _Optional[int] = ..., digest: _Optional[int] = ...) -> None: ...

class GetRetentionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetRetentionResponse(_message.Message):
    __slots__ = ("oldest_step", "journal_records", "journal_bytes", "checkpoints", "checkpoint_bytes", "history_bytes", "bookmarks")
    OLDEST_STEP_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_RECORDS_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_BYTES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BOOKMARKS_FIELD_NUMBER: _ClassVar[int]
    oldest_step: int
    journal_records: int
    journal_bytes: int
    checkpoints: int
    checkpoint_bytes: int
    history_bytes: int
    bookmarks: _containers.RepeatedCompositeFieldContainer[BookmarkCost]
    def __init__(self, oldest_step: _Optional[int] = ..., journal_records: _Optional[int] = ..., journal_bytes: _Optional[int] = ..., checkpoints: _Optional[int] = ..., checkpoint_bytes: _Optional[int] = ..., history_bytes: _Optional[int] = ..., bookmarks: _Optional[_Iterable[_Union[BookmarkCost, _Mapping]]] = ...) -> None: ...

class BookmarkCost(_message.Message):
    __slots__ = ("bookmark", "journal_bytes")
    BOOKMARK_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    bookmark: Bookmark
    journal_bytes: int
    def __init__(self, bookmark: _Optional[_Union[Bookmark, _Mapping]] = ..., journal_bytes: _Optional[int] = ...) -> None: ...
