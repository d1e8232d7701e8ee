"""Changes inputs where they mean something: fields of the messages by their types, and the order of the messages.

Values are those that programs break on: the ends of integer ranges, what is not finite, names that are too long, arrays
whose length lies.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from steelyard.v1 import arrays_pb2
from tests.robustness.fuzz.inputs import Item, packed, unpacked

Dice = random.Random
Field = Any
"""A FieldDescriptor: there are two of that name, which differ by the implementation of protobuf."""

_INTEGERS = (0, 1, 2, 3, 7, 8, 9, 47, 48, 49, 255, 256, 257, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_LONG_INTEGERS = (*_INTEGERS, 1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_NUMBERS: tuple[float, ...] = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2.0,
    8.0,
    48.0,
    1e-300,
    1e-38,
    3e38,
    1e39,
    1e300,
    -1e300,
)
_NUMBERS += (float("nan"), float("inf"), -float("inf"), 2.0**31, 2.0**53, 2.0**64)
_TEXTS: tuple[str, ...] = (
    "",
    "d",
    "r",
    "f",
    "loss",
    "quality",
    "group",
    "el2n",
    "last_loss",
    "count_loss",
    "mean_el2n",
    "a",
    "b",
    "..",
    "/",
)
_TEXTS += (
    "x" * 64,
    "x" * 65,
    "x" * 129,
    "x" * 300,
    "\0",
    "ü",
    "\ud7ff",
    "mark",
    "shuffle",
    "scored",
    "@",
    "@/..",
    "@/x/y",
    "@\0",
    "file://localhost/tmp",
    "memory://x",
    "none",
    "auto",
    "server",
)
_ITEM_SIZES = {"DTYPE_FLOAT32": 4, "DTYPE_FLOAT64": 8, "DTYPE_UINT8": 1, "DTYPE_UINT16": 2, "DTYPE_UINT32": 4}


def mutated(data: bytes, max_size: int, seed: int, spare: Sequence[bytes]) -> bytes:
    """Another input near to `data`, of at most `max_size` bytes; `spare` are inputs to take messages from."""
    dice = Dice(seed)
    items = unpacked(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
        _change(items, dice, spare)
    while len(found := packed(items)) > max_size and items:
        items.pop(dice.randrange(len(items)))
    return found


def _change(items: list[Item], dice: Dice, spare: Sequence[bytes]) -> None:
    roll = dice.random()
    if not items or roll < 0.12:
        others = unpacked(dice.choice(spare)) if spare else []
        if others:
            items.insert(dice.randint(0, len(items)), dice.choice(others))
        return
    at = dice.randrange(len(items))
    if roll < 0.17:
        items.pop(at)
    elif roll < 0.24:
        items.insert(dice.randint(0, len(items)), items[at])
    elif roll < 0.29:
        other = dice.randrange(len(items))
        items[at], items[other] = items[other], items[at]
    elif roll < 0.33:
        items[at] = Item(items[at].kind, _flipped(items[at].data, dice))
    else:
        items[at] = _with_another_field(items[at], dice)


def _flipped(data: bytes, dice: Dice) -> bytes:
    if not data:
        return bytes([dice.randrange(256)])
    at = dice.randrange(len(data))
    return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]


def _with_another_field(item: Item, dice: Dice) -> Item:
    try:
        message = item.type.FromString(item.data)
    except DecodeError:
        message = item.type()
    alter(message, dice)
    return Item(item.kind, message.SerializeToString(deterministic=True))


def alter(message: Message, dice: Dice, depth: int = 0) -> None:
    """Changes one field of the message, or of one inside it."""
    if isinstance(message, arrays_pb2.Array):
        _alter_array(message, dice)
        return
    fields: list[Field] = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    inner: list[Field] = [
        field for field, _ in message.ListFields() if field.type == FieldDescriptor.TYPE_MESSAGE
    ]
    # Most of the time deeper, where there is something: the outer fields are few.
    field = dice.choice(inner) if inner and depth < 8 and dice.random() < 0.75 else dice.choice(fields)
    if _is_map(field):
        _alter_map(getattr(message, field.name), field, dice, depth)
    elif field.is_repeated:
        _alter_list(getattr(message, field.name), field, dice, depth)
    elif dice.random() < 0.08:
        message.ClearField(field.name)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        one = getattr(message, field.name)
        one.SetInParent()
        if depth < 8:
            alter(one, dice, depth + 1)
    else:
        setattr(message, field.name, _value(field, dice, getattr(message, field.name)))


def _alter_array(array: arrays_pb2.Array, dice: Dice) -> None:
    match dice.randrange(6):
        case 0:
            array.count = _value(array.DESCRIPTOR.fields_by_name["count"], dice, array.count)
        case 1:
            array.dtype = dice.randrange(9)  # type: ignore[assignment]
        case 2:
            array.data = _flipped(array.data, dice)
        case 3:
            array.data = array.data[: dice.randint(0, len(array.data))]
        case _:
            # One that is whole: of one type and another length.
            size = _ITEM_SIZES.get(arrays_pb2.DType.Name(array.dtype), 4) if 0 <= array.dtype < 8 else 4
            count = dice.choice((0, 1, 2, 7, 8, 9, 48, 64))
            kept = (array.data + bytes(size * count))[: size * count]
            array.count, array.data = count, _flipped(kept, dice) if kept and dice.random() < 0.5 else kept


def _alter_map(values: Any, field: Field, dice: Dice, depth: int) -> None:
    keys = sorted(values)
    if keys and dice.random() < 0.15:
        del values[dice.choice(keys)]
    elif keys and dice.random() < 0.85:
        alter(values[dice.choice(keys)], dice, depth + 1)
    else:
        alter(values[dice.choice(_TEXTS)], dice, depth + 1)


def _alter_list(values: Any, field: Field, dice: Dice, depth: int) -> None:
    roll = dice.random()
    is_message = field.type == FieldDescriptor.TYPE_MESSAGE
    if values and roll < 0.15:
        del values[dice.randrange(len(values))]
    elif values and roll < 0.3:
        values.append(values[dice.randrange(len(values))])
    elif not values or roll < 0.4:
        if is_message:
            alter(values.add(), dice, depth + 1)
        else:
            values.append(_value(field, dice, None))
    elif is_message:
        alter(values[dice.randrange(len(values))], dice, depth + 1)
    else:
        values[dice.randrange(len(values))] = _value(field, dice, None)


def _value(field: Field, dice: Dice, now: Any) -> Any:
    return _VALUES[field.cpp_type](field, dice, now)


def _integer(choices: Sequence[int], most: int) -> Callable[[Field, Dice, Any], int]:
    def value(field: Field, dice: Dice, now: Any) -> int:
        if isinstance(now, int) and dice.random() < 0.3:
            return int(min(max(now + dice.choice((-1, 1)), 0), most))
        return min(dice.choice(choices), most)

    return value


def _text(field: Field, dice: Dice, now: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return dice.randbytes(dice.choice((0, 1, 4, 32)))
    return dice.choice(_TEXTS)


_VALUES: dict[int, Callable[[Field, Dice, Any], Any]] = {
    FieldDescriptor.CPPTYPE_INT32: _integer(_INTEGERS, (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: _integer(_INTEGERS, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: _integer(_LONG_INTEGERS, (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: _integer(_LONG_INTEGERS, (1 << 64) - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: lambda field, dice, now: dice.choice(_NUMBERS),
    FieldDescriptor.CPPTYPE_FLOAT: lambda field, dice, now: dice.choice(_NUMBERS),
    FieldDescriptor.CPPTYPE_BOOL: lambda field, dice, now: not now,
    FieldDescriptor.CPPTYPE_ENUM: lambda field, dice, now: dice.randrange(5),
    FieldDescriptor.CPPTYPE_STRING: _text,
}


def _is_map(field: Field) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
