from steelyard.v1 import arrays_pb2 as _arrays_pb2
from steelyard.v1 import runs_pb2 as _runs_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Weighing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHING_UNSPECIFIED: _ClassVar[Weighing]
    WEIGHING_DRAW: _ClassVar[Weighing]
    WEIGHING_LOSSES: _ClassVar[Weighing]
    WEIGHING_SERVER: _ClassVar[Weighing]
    WEIGHING_IN_ORDER: _ClassVar[Weighing]

class Disposition(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DISPOSITION_UNSPECIFIED: _ClassVar[Disposition]
    DISPOSITION_APPLIED: _ClassVar[Disposition]
    DISPOSITION_DUPLICATE: _ClassVar[Disposition]
    DISPOSITION_LATE: _ClassVar[Disposition]
WEIGHING_UNSPECIFIED: Weighing
WEIGHING_DRAW: Weighing
WEIGHING_LOSSES: Weighing
WEIGHING_SERVER: Weighing
WEIGHING_IN_ORDER: Weighing
DISPOSITION_UNSPECIFIED: Disposition
DISPOSITION_APPLIED: Disposition
DISPOSITION_DUPLICATE: Disposition
DISPOSITION_LATE: Disposition

class TrainRequest(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[TrainerMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[TrainerMessage, _Mapping]]] = ...) -> None: ...

class TrainResponse(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[RunMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[RunMessage, _Mapping]]] = ...) -> None: ...

class TrainerMessage(_message.Message):
    __slots__ = ("join", "credit", "report", "leave")
    JOIN_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    join: Join
    credit: Credit
    report: Report
    leave: Leave
    def __init__(self, join: _Optional[_Union[Join, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ...) -> None: ...

class RunMessage(_message.Message):
    __slots__ = ("joined", "batch", "acknowledgement", "refusal", "weights", "missing_input")
    JOINED_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGEMENT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    MISSING_INPUT_FIELD_NUMBER: _ClassVar[int]
    joined: Joined
    batch: Batch
    acknowledgement: Acknowledgement
    refusal: Refusal
    weights: Weights
    missing_input: _runs_pb2.MissingInput
    def __init__(self, joined: _Optional[_Union[Joined, _Mapping]] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ..., acknowledgement: _Optional[_Union[Acknowledgement, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., weights: _Optional[_Union[Weights, _Mapping]] = ..., missing_input: _Optional[_Union[_runs_pb2.MissingInput, _Mapping]] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("run", "rank", "world_size", "replica", "attempt", "start_step", "session", "resume_step", "credit", "fingerprint")
    RUN_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    START_STEP_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RESUME_STEP_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    run: str
    rank: int
    world_size: int
    replica: int
    attempt: str
    start_step: int
    session: str
    resume_step: int
    credit: int
    fingerprint: str
    def __init__(self, run: _Optional[str] = ..., rank: _Optional[int] = ..., world_size: _Optional[int] = ..., replica: _Optional[int] = ..., attempt: _Optional[str] = ..., start_step: _Optional[int] = ..., session: _Optional[str] = ..., resume_step: _Optional[int] = ..., credit: _Optional[int] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("batches",)
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    batches: int
    def __init__(self, batches: _Optional[int] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("step", "offset", "digest", "signals", "want_weights")
    STEP_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    WANT_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    step: int
    offset: int
    digest: int
    signals: _containers.RepeatedCompositeFieldContainer[_arrays_pb2.Signal]
    want_weights: bool
    def __init__(self, step: _Optional[int] = ..., offset: _Optional[int] = ..., digest: _Optional[int] = ..., signals: _Optional[_Iterable[_Union[_arrays_pb2.Signal, _Mapping]]] = ..., want_weights: bool = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Joined(_message.Message):
    __slots__ = ("spec", "dataset_size", "start_step", "attempt", "reads_reports", "weighs_losses", "weighing")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    DATASET_SIZE_FIELD_NUMBER: _ClassVar[int]
    START_STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    READS_REPORTS_FIELD_NUMBER: _ClassVar[int]
    WEIGHS_LOSSES_FIELD_NUMBER: _ClassVar[int]
    WEIGHING_FIELD_NUMBER: _ClassVar[int]
    spec: _runs_pb2.RunSpec
    dataset_size: int
    start_step: int
    attempt: str
    reads_reports: bool
    weighs_losses: bool
    weighing: Weighing
    def __init__(self, spec: _Optional[_Union[_runs_pb2.RunSpec, _Mapping]] = ..., dataset_size: _Optional[int] = ..., start_step: _Optional[int] = ..., attempt: _Optional[str] = ..., reads_reports: bool = ..., weighs_losses: bool = ..., weighing: _Optional[_Union[Weighing, str]] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("step", "offset", "batch_size", "ids", "probability", "uniform_probability", "weight", "state_version", "digest", "policy", "weighing")
    STEP_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    UNIFORM_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    STATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    WEIGHING_FIELD_NUMBER: _ClassVar[int]
    step: int
    offset: int
    batch_size: int
    ids: _arrays_pb2.Array
    probability: _arrays_pb2.Array
    uniform_probability: float
    weight: _arrays_pb2.Array
    state_version: int
    digest: int
    policy: _runs_pb2.Policy
    weighing: Weighing
    def __init__(self, step: _Optional[int] = ..., offset: _Optional[int] = ..., batch_size: _Optional[int] = ..., ids: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., probability: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., uniform_probability: _Optional[float] = ..., weight: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ..., state_version: _Optional[int] = ..., digest: _Optional[int] = ..., policy: _Optional[_Union[_runs_pb2.Policy, _Mapping]] = ..., weighing: _Optional[_Union[Weighing, str]] = ...) -> None: ...

class Acknowledgement(_message.Message):
    __slots__ = ("step", "offset", "count", "disposition")
    STEP_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DISPOSITION_FIELD_NUMBER: _ClassVar[int]
    step: int
    offset: int
    count: int
    disposition: Disposition
    def __init__(self, step: _Optional[int] = ..., offset: _Optional[int] = ..., count: _Optional[int] = ..., disposition: _Optional[_Union[Disposition, str]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("step", "offset", "count", "code", "message")
    STEP_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    step: int
    offset: int
    count: int
    code: int
    message: str
    def __init__(self, step: _Optional[int] = ..., offset: _Optional[int] = ..., count: _Optional[int] = ..., code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class Weights(_message.Message):
    __slots__ = ("step", "offset", "weights")
    STEP_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    step: int
    offset: int
    weights: _arrays_pb2.Array
    def __init__(self, step: _Optional[int] = ..., offset: _Optional[int] = ..., weights: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ...) -> None: ...
