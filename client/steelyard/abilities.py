"""What a server can do, asked before it is relied on: an older one passes over what it does not know without a word."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError

from steelyard.v1 import server_pb2

INSTANCE = "x-steelyard-instance"

# Which fields an ability stands for, as the schema of a server of before GetServer shows them.
_FIELDS = {"mix": ("Policy", "mix")}


@dataclass(frozen=True, slots=True)
class Abilities:
    """`known` is False where the server could not be asked: then what it did is looked at afterwards."""

    names: frozenset[str]
    instance: str | None = None
    known: bool = True

    def lacks(self, name: str) -> bool:
        """Whether the server is known not to have it."""
        return self.known and name not in self.names


def told(answer: server_pb2.GetServerResponse) -> Abilities:
    return Abilities(frozenset(answer.capabilities), answer.instance)


def of_schema(channel: grpc.Channel, timeout: float) -> Abilities:
    """Those of a server that knows no GetServer, by the schema that it shows by reflection."""
    try:
        messages = _messages(channel, timeout)
    except (grpc.RpcError, ValueError, DecodeError):
        return Abilities(frozenset(), known=False)
    names = {
        ability
        for ability, (message, field) in _FIELDS.items()
        if field in {one.name for one in messages[message].field}
    }
    return Abilities(frozenset(names))


def _messages(channel: grpc.Channel, timeout: float) -> dict[str, descriptor_pb2.DescriptorProto]:
    """The messages of the file that has Policy, by name. ValueError where the answer has no such file."""
    ask = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", _as_it_is, _as_it_is
    )
    symbol = b"steelyard.v1.Policy"
    # ServerReflectionRequest.file_containing_symbol is field 4, and so is the answer's file_descriptor_response, whose
    # files are its field 1: a FileDescriptorSet, as it happens. Reflection's own package is no part of a client.
    call = ask(iter([bytes([0x22, len(symbol)]) + symbol]), timeout=timeout)
    answer = _length_delimited(next(call, b""), 4)
    call.cancel()
    files = descriptor_pb2.FileDescriptorSet.FromString(answer)
    messages = {one.name: one for file in files.file for one in file.message_type}
    if "Policy" not in messages:
        raise ValueError("no such file")
    return messages


def _length_delimited(message: bytes, wanted: int) -> bytes:
    """The field of that number, of a message whose fields are all length-delimited. ValueError where it has none."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        size, at = _varint(message, at)
        if key & 7 != 2 or at + size > len(message):
            raise ValueError("not such a message")
        if key >> 3 == wanted:
            return message[at : at + size]
        at += size
    raise ValueError(f"no field {wanted}")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 63:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
    raise ValueError("a number that does not end")


def _as_it_is(message: bytes) -> bytes:
    return message
