"""Messages of the wire to values of the runs, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf import struct_pb2

from steelyard import wire
from steelyard.v1 import arrays_pb2, datasets_pb2, runs_pb2, trainer_pb2
from steelyard_server.core.events import Float32s, Ids
from steelyard_server.policies.policy import NO_MIX
from steelyard_server.runs.datasets import DatasetInfo
from steelyard_server.runs.errors import Invalid
from steelyard_server.runs.messages import (
    Acknowledgement,
    Disposition,
    Join,
    Joined,
    MissingInput,
    Outgoing,
    Refusal,
    Report,
    Slice,
    Weighing,
    Weights,
)
from steelyard_server.runs.ownership import RunInfo
from steelyard_server.runs.retention import Retention
from steelyard_server.runs.spec import RunSpec, parse_spec
from steelyard_server.runs.stats import RunStats
from steelyard_server.service.errors import status_of

_DISPOSITIONS = {
    Disposition.APPLIED: trainer_pb2.DISPOSITION_APPLIED,
    Disposition.DUPLICATE: trainer_pb2.DISPOSITION_DUPLICATE,
    Disposition.LATE: trainer_pb2.DISPOSITION_LATE,
}
_WEIGHINGS = {
    Weighing.DRAW: trainer_pb2.WEIGHING_DRAW,
    Weighing.LOSSES: trainer_pb2.WEIGHING_LOSSES,
    Weighing.SERVER: trainer_pb2.WEIGHING_SERVER,
    Weighing.IN_ORDER: trainer_pb2.WEIGHING_IN_ORDER,
}
_ON_NONFINITE = {
    runs_pb2.ON_NONFINITE_UNSPECIFIED: "skip",
    runs_pb2.ON_NONFINITE_SKIP: "skip",
    runs_pb2.ON_NONFINITE_REJECT: "reject",
}
_ON_NONFINITE_CODES = {"skip": runs_pb2.ON_NONFINITE_SKIP, "reject": runs_pb2.ON_NONFINITE_REJECT}
_FLOAT32, _FLOAT64 = np.dtype("<f4"), np.dtype("<f8")
_UINT_CODES = {
    1: arrays_pb2.DTYPE_UINT8,
    2: arrays_pb2.DTYPE_UINT16,
    4: arrays_pb2.DTYPE_UINT32,
    8: arrays_pb2.DTYPE_UINT64,
}
RESPONSE_BYTES = 1 << 20
_REPORT_BYTES = 64

_STATUS_CODES = {code: code.value[0] for code in grpc.StatusCode}


# ---- arrays ----


def floats(message: arrays_pb2.Array, name: str) -> Float32s:
    """float32 values; Invalid where the message holds anything else."""
    if message.dtype == arrays_pb2.DTYPE_FLOAT32:
        data = message.data  # a copy, each time
        if len(data) == 4 * message.count:
            return np.frombuffer(data, _FLOAT32)
    try:
        return wire.unpack(message, np.float32, name=name)
    except ValueError as error:
        raise Invalid(str(error)) from error


def ids_of(message: arrays_pb2.Array, name: str = "ids") -> Ids:
    """int64 ids; Invalid where the message holds no integers."""
    try:
        return wire.unpack_ids(message, name=name)
    except ValueError as error:
        raise Invalid(str(error)) from error


def signals_of(signals: Iterable[arrays_pb2.Signal]) -> dict[str, Float32s]:
    values: dict[str, Float32s] = {}
    for signal in signals:
        if not 1 <= len(signal.name) <= 64 or signal.name in values:
            raise Invalid(f"expected signals of different names of 1..64 characters; got {signal.name!r}")
        values[signal.name] = floats(signal.values, f"signal {signal.name!r}")
    return values


# ---- policies and specs ----


def struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    message = struct_pb2.Struct()
    message.update(dict(values))
    return message


def plain(message: struct_pb2.Struct, name: str) -> dict[str, Any]:
    """A Struct as JSON values; whole numbers, which a Struct keeps as doubles, are ints again.

    Invalid where a number is not finite: JSON has none, so the journal could not keep it.
    """
    return {key: _plain(value, f"{name}.{key}") for key, value in message.fields.items()}


def _plain(value: struct_pb2.Value, place: str) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            if not math.isfinite(number):
                raise Invalid(f"{place}: expected a finite number; got {number}")
            return int(number) if number.is_integer() and abs(number) < 2**53 else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return plain(value.struct_value, place)
        case "list_value":
            return [_plain(item, f"{place}[{at}]") for at, item in enumerate(value.list_value.values)]
        case _:
            return None


def policy_parts(
    message: runs_pb2.Policy,
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, dict[str, Any] | None]:
    """draw, weigh and mix; None where the message does not say."""
    draw = plain(message.draw, "draw") if message.HasField("draw") else None
    weigher = plain(message.weigh, "weigh") if message.HasField("weigh") else None
    mix = plain(message.mix, "mix") if message.HasField("mix") else None
    return draw, weigher, mix


def policy(values: Mapping[str, Any]) -> runs_pb2.Policy:
    # An event of before there were mixes does not say.
    mix = values.get("mix", NO_MIX)
    return runs_pb2.Policy(draw=struct(values["draw"]), weigh=struct(values["weigh"]), mix=struct(mix))


def spec_of(message: runs_pb2.RunSpec) -> RunSpec:
    draw, weigher, mix = policy_parts(message.policy)
    values: dict[str, Any] = {
        "name": message.name,
        "dataset": message.dataset,
        "batch_size": message.batch_size,
        "seed": message.seed,
        "draw": draw or {"method": "shuffle"},
        "mix": mix,
        "weigh": weigher or {},
        "on_nonfinite": _ON_NONFINITE.get(message.on_nonfinite, message.on_nonfinite),
    }
    bound = message.staleness.WhichOneof("bound")
    if bound is not None:
        values["staleness"] = "any" if bound == "any" else message.staleness.steps
    for field, key in (
        ("report_timeout_seconds", "report_timeout"),
        ("history_size", "history_size"),
        ("retain_steps", "retain_steps"),
    ):
        if message.HasField(field):
            values[key] = getattr(message, field)
    return parse_spec(values)


def spec(value: RunSpec) -> runs_pb2.RunSpec:
    staleness = (
        runs_pb2.Staleness(any=True)
        if value.staleness == "any"
        else runs_pb2.Staleness(steps=value.staleness)
    )
    return runs_pb2.RunSpec(
        name=value.name,
        dataset=value.dataset,
        batch_size=value.batch_size,
        seed=value.seed,
        policy=policy({"draw": value.draw, "mix": value.mix, "weigh": value.weigh}),
        staleness=staleness,
        on_nonfinite=_ON_NONFINITE_CODES[value.on_nonfinite],
        report_timeout_seconds=value.report_timeout,
        history_size=value.history_size,
        retain_steps=value.retain_steps,
    )


# ---- answers ----


def dataset(info: DatasetInfo) -> datasets_pb2.Dataset:
    return datasets_pb2.Dataset(
        name=info.name,
        size=info.size,
        retired=info.retired,
        fingerprint=info.fingerprint,
        columns=sorted(info.columns),
    )


def run(info: RunInfo, parent: tuple[str, int]) -> runs_pb2.Run:
    return runs_pb2.Run(
        spec=spec(info.spec),
        next_step=info.next_step,
        closed_steps=info.closed_steps,
        oldest_step=info.oldest_step,
        dataset_size=info.dataset_size,
        attempt=info.attempt,
        bookmarks=[runs_pb2.Bookmark(name=name, step=step) for name, step in sorted(info.bookmarks.items())],
        parent=parent[0],
        parent_step=parent[1],
        missing_inputs=map(missing_input, info.missing_inputs),
    )


def missing_input(value: MissingInput) -> runs_pb2.MissingInput:
    return runs_pb2.MissingInput(name=value.name, text=value.text, column=value.column)


def stats(value: RunStats) -> runs_pb2.GetStatsResponse:
    fields = {name: getattr(value, name) for name in RunStats.__dataclass_fields__}
    fields["missing_inputs"] = map(missing_input, value.missing_inputs)
    fields["never_reported"] = -1 if value.never_reported is None else value.never_reported
    return runs_pb2.GetStatsResponse(**fields)


def retention(value: Retention) -> runs_pb2.GetRetentionResponse:
    kept = value.kept
    return runs_pb2.GetRetentionResponse(
        oldest_step=kept.oldest_step,
        journal_records=kept.journal_records,
        journal_bytes=kept.journal_bytes,
        checkpoints=kept.checkpoints,
        checkpoint_bytes=value.checkpoint_bytes,
        history_bytes=value.history_bytes,
        bookmarks=[
            runs_pb2.BookmarkCost(
                bookmark=runs_pb2.Bookmark(name=one.name, step=one.step), journal_bytes=one.journal_bytes
            )
            for one in kept.bookmarks
        ],
    )


def batch(value: Slice) -> runs_pb2.GetBatchResponse:
    drawn = value.drawn
    probability = drawn.probability
    if probability is None:
        probability = np.full(len(drawn.ids), drawn.uniform_probability)
    weight = np.ones(len(drawn.ids), np.float32) if value.weight is None else value.weight
    return runs_pb2.GetBatchResponse(
        step=drawn.step,
        ids=wire.pack_ids(drawn.ids, value.dataset_size),
        probability=wire.pack(probability, np.float64),
        weight=wire.pack(weight, np.float32),
        state_version=drawn.state_version,
        digest=drawn.digest,
    )


# ---- the trainers' stream ----


def join(message: trainer_pb2.Join) -> Join:
    return Join(
        rank=message.rank,
        world_size=message.world_size,
        replica=message.replica,
        attempt=message.attempt,
        session=message.session,
        start_step=message.start_step if message.HasField("start_step") else None,
        resume_step=message.resume_step if message.HasField("resume_step") else None,
        credit=message.credit,
    )


def report(message: trainer_pb2.Report) -> Report:
    return Report(
        step=message.step,
        offset=message.offset,
        digest=message.digest,
        signals=signals_of(message.signals),
        want_weights=message.want_weights,
    )


def size_of(report: Report) -> int:
    """Bytes that a report holds while it is under way, roughly."""
    return _REPORT_BYTES + sum(values.nbytes for values in report.signals.values())


def responses(messages: Iterable[Outgoing]) -> Iterator[trainer_pb2.TrainResponse]:
    """The messages in as few responses as their size allows: a client refuses one above its limit."""
    response, size = trainer_pb2.TrainResponse(), 0
    for message in messages:
        part = response.messages.add()
        _fill(part, message)
        length = part.ByteSize()
        if size and size + length > RESPONSE_BYTES:
            following = trainer_pb2.TrainResponse(messages=[part])
            del response.messages[-1]
            yield response
            response, size = following, 0
        size += length
    yield response


# Messages are filled in where they are sent from: to make them apart and copy them in costs twice that.


def _fill(part: trainer_pb2.RunMessage, message: Outgoing) -> None:
    match message:
        case Slice():
            _fill_batch(part.batch, message)
        case Acknowledgement():
            answer = part.acknowledgement
            answer.step = message.step
            answer.offset = message.offset
            answer.count = message.count
            answer.disposition = _DISPOSITIONS[message.disposition]
        case Weights():
            part.weights.step = message.step
            part.weights.offset = message.offset
            _fill_array(part.weights.weights, message.weights, _FLOAT32, arrays_pb2.DTYPE_FLOAT32)
        case Refusal():
            code, text = status_of(message.error)
            refusal = part.refusal
            refusal.step = message.step
            refusal.offset = message.offset
            refusal.count = message.count
            refusal.code = _STATUS_CODES[code]
            refusal.message = text
        case Joined():
            part.joined.CopyFrom(_joined(message))
        case MissingInput():
            part.missing_input.CopyFrom(missing_input(message))


def _joined(message: Joined) -> trainer_pb2.Joined:
    return trainer_pb2.Joined(
        spec=spec(message.spec),
        dataset_size=message.dataset_size,
        start_step=message.start_step,
        attempt=message.attempt,
        reads_reports=message.reads_reports,
        weighs_losses=message.weighing is not Weighing.DRAW,
        weighing=_WEIGHINGS[message.weighing],
    )


def _fill_batch(answer: trainer_pb2.Batch, message: Slice) -> None:
    drawn, cut = message.drawn, slice(message.offset, message.offset + message.count)
    answer.step = drawn.step
    answer.offset = message.offset
    answer.batch_size = len(drawn.ids)
    # Ids that were drawn are below the size: nothing is left to check.
    target = wire.smallest_uint(message.dataset_size)
    _fill_array(answer.ids, drawn.ids[cut], target, _UINT_CODES[target.itemsize])
    answer.state_version = drawn.state_version
    answer.digest = drawn.digest
    answer.uniform_probability = drawn.uniform_probability
    if drawn.probability is not None:
        _fill_array(answer.probability, drawn.probability[cut], _FLOAT64, arrays_pb2.DTYPE_FLOAT64)
    if message.weight is not None:
        _fill_array(answer.weight, message.weight, _FLOAT32, arrays_pb2.DTYPE_FLOAT32)
    if message.policy is not None:
        answer.policy.CopyFrom(policy(message.policy))
    if message.weighing is not None:
        answer.weighing = _WEIGHINGS[message.weighing]


def _fill_array(
    message: arrays_pb2.Array, values: npt.NDArray[Any], target: np.dtype[Any], code: arrays_pb2.DType
) -> None:
    message.dtype = code
    message.count = len(values)
    message.data = values.astype(target, copy=False).tobytes()
