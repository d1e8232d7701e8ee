from steelyard_server.disk.v1 import arrays_pb2 as _arrays_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Checkpoint(_message.Message):
    __slots__ = ("seq", "step", "chain", "meta_json", "blobs", "columns")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    META_JSON_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    step: int
    chain: bytes
    meta_json: str
    blobs: _containers.RepeatedCompositeFieldContainer[Blob]
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    def __init__(self, seq: _Optional[int] = ..., step: _Optional[int] = ..., chain: _Optional[bytes] = ..., meta_json: _Optional[str] = ..., blobs: _Optional[_Iterable[_Union[Blob, _Mapping]]] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("name", "array")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    name: str
    array: _arrays_pb2.Array
    def __init__(self, name: _Optional[str] = ..., array: _Optional[_Union[_arrays_pb2.Array, _Mapping]] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("name", "element_type", "length")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    element_type: _arrays_pb2.ElementType
    length: int
    def __init__(self, name: _Optional[str] = ..., element_type: _Optional[_Union[_arrays_pb2.ElementType, str]] = ..., length: _Optional[int] = ...) -> None: ...
