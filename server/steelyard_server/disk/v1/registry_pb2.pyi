from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class DatasetRow(_message.Message):
    __slots__ = ("name", "dataset_id", "size", "retired", "fingerprint", "columns", "created_unix_seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    RETIRED_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    dataset_id: int
    size: int
    retired: int
    fingerprint: str
    columns: _containers.RepeatedScalarFieldContainer[str]
    created_unix_seconds: float
    def __init__(self, name: _Optional[str] = ..., dataset_id: _Optional[int] = ..., size: _Optional[int] = ..., retired: _Optional[int] = ..., fingerprint: _Optional[str] = ..., columns: _Optional[_Iterable[str]] = ..., created_unix_seconds: _Optional[float] = ...) -> None: ...

class RunRow(_message.Message):
    __slots__ = ("name", "run_id", "dataset", "spec_json", "parent", "parent_step", "created_unix_seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PARENT_STEP_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    run_id: int
    dataset: str
    spec_json: str
    parent: str
    parent_step: int
    created_unix_seconds: float
    def __init__(self, name: _Optional[str] = ..., run_id: _Optional[int] = ..., dataset: _Optional[str] = ..., spec_json: _Optional[str] = ..., parent: _Optional[str] = ..., parent_step: _Optional[int] = ..., created_unix_seconds: _Optional[float] = ...) -> None: ...
