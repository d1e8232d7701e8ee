from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Severity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEVERITY_UNSPECIFIED: _ClassVar[Severity]
    SEVERITY_DAMAGE: _ClassVar[Severity]
    SEVERITY_NOTE: _ClassVar[Severity]
SEVERITY_UNSPECIFIED: Severity
SEVERITY_DAMAGE: Severity
SEVERITY_NOTE: Severity

class BackupRequest(_message.Message):
    __slots__ = ("to",)
    TO_FIELD_NUMBER: _ClassVar[int]
    to: str
    def __init__(self, to: _Optional[str] = ...) -> None: ...

class BackupResponse(_message.Message):
    __slots__ = ("backup", "removed")
    BACKUP_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    backup: Backup
    removed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, backup: _Optional[_Union[Backup, _Mapping]] = ..., removed: _Optional[_Iterable[str]] = ...) -> None: ...

class ListBackupsRequest(_message.Message):
    __slots__ = ("to",)
    TO_FIELD_NUMBER: _ClassVar[int]
    to: str
    def __init__(self, to: _Optional[str] = ...) -> None: ...

class ListBackupsResponse(_message.Message):
    __slots__ = ("backups",)
    BACKUPS_FIELD_NUMBER: _ClassVar[int]
    backups: _containers.RepeatedCompositeFieldContainer[Backup]
    def __init__(self, backups: _Optional[_Iterable[_Union[Backup, _Mapping]]] = ...) -> None: ...

class Backup(_message.Message):
    __slots__ = ("name", "place", "created_unix_seconds", "bytes", "steelyard_version", "store_format", "runs", "verified_unix_seconds", "fault", "datasets")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    STEELYARD_VERSION_FIELD_NUMBER: _ClassVar[int]
    STORE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    name: str
    place: str
    created_unix_seconds: float
    bytes: int
    steelyard_version: str
    store_format: int
    runs: _containers.RepeatedCompositeFieldContainer[BackupRun]
    verified_unix_seconds: float
    fault: str
    datasets: int
    def __init__(self, name: _Optional[str] = ..., place: _Optional[str] = ..., created_unix_seconds: _Optional[float] = ..., bytes: _Optional[int] = ..., steelyard_version: _Optional[str] = ..., store_format: _Optional[int] = ..., runs: _Optional[_Iterable[_Union[BackupRun, _Mapping]]] = ..., verified_unix_seconds: _Optional[float] = ..., fault: _Optional[str] = ..., datasets: _Optional[int] = ...) -> None: ...

class BackupRun(_message.Message):
    __slots__ = ("name", "next_step", "journal_records")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_RECORDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    next_step: int
    journal_records: int
    def __init__(self, name: _Optional[str] = ..., next_step: _Optional[int] = ..., journal_records: _Optional[int] = ...) -> None: ...

class CheckRequest(_message.Message):
    __slots__ = ("deep",)
    DEEP_FIELD_NUMBER: _ClassVar[int]
    deep: bool
    def __init__(self, deep: bool = ...) -> None: ...

class CheckResponse(_message.Message):
    __slots__ = ("progress", "finding", "report")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FINDING_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    progress: str
    finding: Finding
    report: CheckReport
    def __init__(self, progress: _Optional[str] = ..., finding: _Optional[_Union[Finding, _Mapping]] = ..., report: _Optional[_Union[CheckReport, _Mapping]] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("severity", "where", "what", "remedy")
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    severity: Severity
    where: str
    what: str
    remedy: str
    def __init__(self, severity: _Optional[_Union[Severity, str]] = ..., where: _Optional[str] = ..., what: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...

class CheckReport(_message.Message):
    __slots__ = ("store_format", "datasets", "runs", "journal_records", "checkpoints", "rows", "file_bytes", "live_bytes", "free_bytes", "tail_bytes", "replayed_checkpoints", "damages", "notes")
    STORE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_RECORDS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TAIL_BYTES_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    DAMAGES_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    store_format: int
    datasets: int
    runs: int
    journal_records: int
    checkpoints: int
    rows: int
    file_bytes: int
    live_bytes: int
    free_bytes: int
    tail_bytes: int
    replayed_checkpoints: int
    damages: int
    notes: int
    def __init__(self, store_format: _Optional[int] = ..., datasets: _Optional[int] = ..., runs: _Optional[int] = ..., journal_records: _Optional[int] = ..., checkpoints: _Optional[int] = ..., rows: _Optional[int] = ..., file_bytes: _Optional[int] = ..., live_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., tail_bytes: _Optional[int] = ..., replayed_checkpoints: _Optional[int] = ..., damages: _Optional[int] = ..., notes: _Optional[int] = ...) -> None: ...
