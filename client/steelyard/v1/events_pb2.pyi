from google.protobuf import struct_pb2 as _struct_pb2
from steelyard.v1 import arrays_pb2 as _arrays_pb2
from steelyard.v1 import runs_pb2 as _runs_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CloseReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLOSE_REASON_UNSPECIFIED: _ClassVar[CloseReason]
    CLOSE_REASON_TIMEOUT: _ClassVar[CloseReason]
    CLOSE_REASON_OWNER: _ClassVar[CloseReason]
CLOSE_REASON_UNSPECIFIED: CloseReason
CLOSE_REASON_TIMEOUT: CloseReason
CLOSE_REASON_OWNER: CloseReason

class StreamEventsRequest(_message.Message):
    __slots__ = ("name", "from_step", "to_step")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FROM_STEP_FIELD_NUMBER: _ClassVar[int]
    TO_STEP_FIELD_NUMBER: _ClassVar[int]
    name: str
    from_step: int
    to_step: int
    def __init__(self, name: _Optional[str] = ..., from_step: _Optional[int] = ..., to_step: _Optional[int] = ...) -> None: ...

class StreamEventsResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("record", "run_created", "policy_changed", "column_set", "dataset_grown", "ids_retired", "batch_drawn", "losses_reported", "signals_observed", "step_closed", "attempt_began", "bookmarked")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    RUN_CREATED_FIELD_NUMBER: _ClassVar[int]
    POLICY_CHANGED_FIELD_NUMBER: _ClassVar[int]
    COLUMN_SET_FIELD_NUMBER: _ClassVar[int]
    DATASET_GROWN_FIELD_NUMBER: _ClassVar[int]
    IDS_RETIRED_FIELD_NUMBER: _ClassVar[int]
    BATCH_DRAWN_FIELD_NUMBER: _ClassVar[int]
    LOSSES_REPORTED_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_OBSERVED_FIELD_NUMBER: _ClassVar[int]
    STEP_CLOSED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_BEGAN_FIELD_NUMBER: _ClassVar[int]
    BOOKMARKED_FIELD_NUMBER: _ClassVar[int]
    record: int
    run_created: RunCreated
    policy_changed: PolicyChanged
    column_set: ColumnSet
    dataset_grown: DatasetGrown
    ids_retired: IdsRetired
    batch_drawn: BatchDrawn
    losses_reported: LossesReported
    signals_observed: SignalsObserved
    step_closed: StepClosed
    attempt_began: AttemptBegan
    bookmarked: Bookmarked
    def __init__(self, record: _Optional[int] = ..., run_created: _Optional[_Union[RunCreated, _Mapping]] = ..., policy_changed: _Optional[_Union[PolicyChanged, _Mapping]] = ..., column_set: _Optional[_Union[ColumnSet, _Mapping]] = ..., dataset_grown: _Optional[_Union[DatasetGrown, _Mapping]] = ..., ids_retired: _Optional[_Union[IdsRetired, _Mapping]] = ..., batch_drawn: _Optional[_Union[BatchDrawn, _Mapping]] = ..., losses_reported: _Optional[_Union[LossesReported, _Mapping]] = ..., signals_observed: _Optional[_Union[SignalsObserved, _Mapping]] = ..., step_closed: _Optional[_Union[StepClosed, _Mapping]] = ..., attempt_began: _Optional[_Union[AttemptBegan, _Mapping]] = ..., bookmarked: _Optional[_Union[Bookmarked, _Mapping]] = ...) -> None: ...

class RunCreated(_message.Message):
    __slots__ = ("spec", "dataset_size")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    DATASET_SIZE_FIELD_NUMBER: _ClassVar[int]
    spec: _runs_pb2.RunSpec
    dataset_size: int
    def __init__(self, spec: _Optional[_Union[_runs_pb2.RunSpec, _Mapping]] = ..., dataset_size: _Optional[int] = ...) -> None: ...

class PolicyChanged(_message.Message):
    __slots__ = ("policy", "step")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    policy: _runs_pb2.Policy
    step: int
    def __init__(self, policy: _Optional[_Union[_runs_pb2.Policy, _Mapping]] = ..., step: _Optional[int] = ...) -> None: ...

class ColumnSet(_message.Message):
    __slots__ = ("column", "ids", "values")
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    column: str
    ids: _arrays_pb2.Array
    values: _arrays_pb2.Array
    def __init__(self, column: _Optional[str] = ..., ids: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., values: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ...) -> None: ...

class DatasetGrown(_message.Message):
    __slots__ = ("size",)
    SIZE_FIELD_NUMBER: _ClassVar[int]
    size: int
    def __init__(self, size: _Optional[int] = ...) -> None: ...

class IdsRetired(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _arrays_pb2.Array
    def __init__(self, ids: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ...) -> None: ...

class BatchDrawn(_message.Message):
    __slots__ = ("step", "ids", "probability", "uniform_probability", "state_version", "digest", "draw_state", "weight")
    STEP_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    UNIFORM_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    STATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DRAW_STATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    step: int
    ids: _arrays_pb2.Array
    probability: _arrays_pb2.Array
    uniform_probability: float
    state_version: int
    digest: int
    draw_state: _struct_pb2.Struct
    weight: _arrays_pb2.Array
    def __init__(self, step: _Optional[int] = ..., ids: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., probability: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., uniform_probability: _Optional[float] = ..., state_version: _Optional[int] = ..., digest: _Optional[int] = ..., draw_state: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., weight: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ...) -> None: ...

class LossesReported(_message.Message):
    __slots__ = ("step", "offset", "signals")
    STEP_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    step: int
    offset: int
    signals: _containers.RepeatedCompositeFieldContainer[_arrays_pb2.Signal]
    def __init__(self, step: _Optional[int] = ..., offset: _Optional[int] = ..., signals: _Optional[_Iterable[_Union[_arrays_pb2.Signal, _Mapping]]] = ...) -> None: ...

class SignalsObserved(_message.Message):
    __slots__ = ("step", "ids", "signals")
    STEP_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    step: int
    ids: _arrays_pb2.Array
    signals: _containers.RepeatedCompositeFieldContainer[_arrays_pb2.Signal]
    def __init__(self, step: _Optional[int] = ..., ids: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., signals: _Optional[_Iterable[_Union[_arrays_pb2.Signal, _Mapping]]] = ...) -> None: ...

class StepClosed(_message.Message):
    __slots__ = ("step", "reason")
    STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    step: int
    reason: CloseReason
    def __init__(self, step: _Optional[int] = ..., reason: _Optional[_Union[CloseReason, str]] = ...) -> None: ...

class AttemptBegan(_message.Message):
    __slots__ = ("attempt", "world_size", "start_step")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    START_STEP_FIELD_NUMBER: _ClassVar[int]
    attempt: str
    world_size: int
    start_step: int
    def __init__(self, attempt: _Optional[str] = ..., world_size: _Optional[int] = ..., start_step: _Optional[int] = ...) -> None: ...

class Bookmarked(_message.Message):
    __slots__ = ("bookmark", "step")
    BOOKMARK_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    bookmark: str
    step: int
    def __init__(self, bookmark: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...
