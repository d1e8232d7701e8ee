"""The messages of a trainer's stream as the values that a session works with. Pure."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard import wire
from steelyard.arguments import float_array
from steelyard.batch import Batch
from steelyard.errors import InvalidArgument, MismatchedLosses
from steelyard.split import split
from steelyard.v1 import arrays_pb2, trainer_pb2

_MAX_NAME = 64
"""Characters of the name of a signal."""


def unpack_batch(message: trainer_pb2.Batch, rank: int, world_size: int) -> Batch:
    """The slice of `rank`. ValueError: another slice than that, arrays that do not fit it, or a digest that differs."""
    offset, count = split(message.batch_size, world_size, rank)
    if message.offset != offset:
        raise ValueError(f"expected the slice from {offset}, got one from {message.offset}")
    ids = wire.unpack_ids(message.ids, count=count)
    # Only a rank that is alone sees the whole batch.
    if world_size == 1 and wire.batch_digest(message.step, ids) != message.digest:
        raise ValueError(f"the ids do not have the digest {message.digest:016x} that came with them")
    if message.HasField("probability"):
        probability = wire.unpack(message.probability, np.float64, count=count, name="probability")
    else:
        probability = np.full(count, message.uniform_probability)
    if message.HasField("weight"):
        weight = wire.unpack(message.weight, np.float32, count=count, name="weight")
    else:
        weight = np.ones(count, np.float32)
    return Batch(
        step=message.step,
        ids=ids,
        probability=probability,
        weight=weight,
        state_version=message.state_version,
        offset=offset,
        batch_size=message.batch_size,
        digest=message.digest,
        rank=rank,
        world_size=world_size,
    )


@dataclass(slots=True)
class ReportParts:
    """A report as plain values, its arrays copied: the message is built where it is sent, off the trainer's thread.

    Nothing changes one that was made. It is not frozen because making a frozen one costs that thread 2 µs more.
    """

    step: int
    offset: int
    digest: int
    want_weights: bool
    signals: tuple[tuple[str, bytes], ...]
    """Name and float32s, little-endian; "loss" is the first."""

    @property
    def size(self) -> int:
        """Bytes of the message, within a few."""
        size = 64
        for name, data in self.signals:
            size += len(name) + len(data) + 16
        return size

    def fill(self, message: trainer_pb2.TrainerMessage) -> None:
        """Makes an empty message this report, in place: a message that is put into another is copied."""
        report = message.report
        report.step, report.offset, report.digest = self.step, self.offset, self.digest
        report.want_weights = self.want_weights
        for name, data in self.signals:
            signal = report.signals.add(name=name)
            values = signal.values
            values.dtype, values.count, values.data = arrays_pb2.DTYPE_FLOAT32, len(data) // 4, data


Outgoing = trainer_pb2.TrainerMessage | ReportParts
"""What a session sends."""


def request_of(messages: Iterable[Outgoing]) -> trainer_pb2.TrainRequest:
    """The messages as one request, in order."""
    request = trainer_pb2.TrainRequest()
    for one in messages:
        message = request.messages.add()
        if isinstance(one, ReportParts):
            one.fill(message)
        else:
            message.CopyFrom(one)
    return request


def report_parts(
    batch: Batch,
    losses: npt.NDArray[np.float32],
    *,
    signals: Mapping[str, Any] | None,
    offset: int,
    want_weights: bool,
) -> ReportParts:
    """A report of the losses from `offset` of the slice on. MismatchedLosses: a signal of another count."""
    packed = [("loss", _little_endian(losses))]
    for name, numbers in signals.items() if signals else ():
        if name == "loss":
            raise InvalidArgument('signals: "loss" is what the losses are reported as; expected another name')
        _check_name(name)
        values = float_array(f"signal {name!r}", numbers)
        if len(values) != len(losses):
            raise MismatchedLosses(
                f"signal {name!r}: expected {len(losses)} values, as many as losses; got {len(values)}"
            )
        packed.append((name, _little_endian(values)))
    return ReportParts(batch.step, batch.offset + offset, batch.digest, want_weights, tuple(packed))


def losses_that_fit(batch: Batch, losses: Any, offset: int | None) -> npt.NDArray[np.float32]:
    """The losses as float32, whose count fits the slice: all of it, or a part from `offset` on. MismatchedLosses."""
    values = float_array("losses", losses)
    if offset is None and len(values) != len(batch):
        raise MismatchedLosses(
            f"step {batch.step}: expected {len(batch)} losses, one for each id of the slice, got {len(values)}; give "
            "`offset` where these are a micro-batch of it"
        )
    room = len(batch) - (offset or 0)
    if len(values) > room or room < 0:
        raise MismatchedLosses(
            f"step {batch.step}: expected at most {max(room, 0)} losses from offset {offset} of a slice of "
            f"{len(batch)}, got {len(values)}"
        )
    return values


def _check_name(name: Any) -> None:
    """InvalidArgument where a message cannot hold the name or the server does not take it: found out later, that would
    end the stream."""
    try:
        str.encode(name)
    except (TypeError, UnicodeEncodeError):
        raise InvalidArgument(
            f"signals: expected names that are strings of Unicode characters, got {name!r}"
        ) from None
    if not 1 <= len(name) <= _MAX_NAME:
        raise InvalidArgument(f"signals: expected names of 1..{_MAX_NAME} characters, got {name!r}")


def _little_endian(values: npt.NDArray[np.float32]) -> bytes:
    return (values if sys.byteorder == "little" else values.astype("<f4")).tobytes()
