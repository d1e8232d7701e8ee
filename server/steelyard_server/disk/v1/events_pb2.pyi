from steelyard_server.disk.v1 import arrays_pb2 as _arrays_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Event(_message.Message):
    __slots__ = ("run_created", "policy_changed", "column_set", "dataset_grown", "ids_retired", "batch_drawn", "losses_reported", "signals_observed", "step_closed", "attempt_began", "bookmarked")
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
    def __init__(self, run_created: _Optional[_Union[RunCreated, _Mapping]] = ..., policy_changed: _Optional[_Union[PolicyChanged, _Mapping]] = ..., column_set: _Optional[_Union[ColumnSet, _Mapping]] = ..., dataset_grown: _Optional[_Union[DatasetGrown, _Mapping]] = ..., ids_retired: _Optional[_Union[IdsRetired, _Mapping]] = ..., batch_drawn: _Optional[_Union[BatchDrawn, _Mapping]] = ..., losses_reported: _Optional[_Union[LossesReported, _Mapping]] = ..., signals_observed: _Optional[_Union[SignalsObserved, _Mapping]] = ..., step_closed: _Optional[_Union[StepClosed, _Mapping]] = ..., attempt_began: _Optional[_Union[AttemptBegan, _Mapping]] = ..., bookmarked: _Optional[_Union[Bookmarked, _Mapping]] = ...) -> None: ...

class RunCreated(_message.Message):
    __slots__ = ("spec_json", "dataset_size")
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    DATASET_SIZE_FIELD_NUMBER: _ClassVar[int]
    spec_json: str
    dataset_size: int
    def __init__(self, spec_json: _Optional[str] = ..., dataset_size: _Optional[int] = ...) -> None: ...

class PolicyChanged(_message.Message):
    __slots__ = ("policy_json",)
    POLICY_JSON_FIELD_NUMBER: _ClassVar[int]
    policy_json: str
    def __init__(self, policy_json: _Optional[str] = ...) -> None: ...

class ColumnSet(_message.Message):
    __slots__ = ("name", "ids", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    ids: _arrays_pb2.Array
    values: _arrays_pb2.Array
    def __init__(self, name: _Optional[str] = ..., ids: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., values: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("step", "ids", "probability", "uniform_probability", "state_version", "digest", "draw_state_json", "weight")
    STEP_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    UNIFORM_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    STATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DRAW_STATE_JSON_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    step: int
    ids: _arrays_pb2.Array
    probability: _arrays_pb2.Array
    uniform_probability: float
    state_version: int
    digest: int
    draw_state_json: str
    weight: _arrays_pb2.Array
    def __init__(self, step: _Optional[int] = ..., ids: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., probability: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., uniform_probability: _Optional[float] = ..., state_version: _Optional[int] = ..., digest: _Optional[int] = ..., draw_state_json: _Optional[str] = ..., weight: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ...) -> None: ...

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
    reason: str
    def __init__(self, step: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class AttemptBegan(_message.Message):
    __slots__ = ("token", "world_size", "start_step")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    START_STEP_FIELD_NUMBER: _ClassVar[int]
    token: str
    world_size: int
    start_step: int
    def __init__(self, token: _Optional[str] = ..., world_size: _Optional[int] = ..., start_step: _Optional[int] = ...) -> None: ...

class Bookmarked(_message.Message):
    __slots__ = ("name", "step")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    name: str
    step: int
    def __init__(self, name: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...
