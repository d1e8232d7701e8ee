"""Arrays cross the wire unchanged, and what does not add up is refused before a byte of it is used."""

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.v1 import arrays_pb2
from steelyard.wire import batch_digest, pack, pack_ids, smallest_uint, unpack, unpack_ids

DTYPES = ["uint8", "uint16", "uint32", "uint64", "int64", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.binary(max_size=64))
def test_any_bytes_come_back_as_they_went(dtype: str, data: bytes) -> None:
    itemsize = np.dtype(dtype).itemsize
    array = np.frombuffer(data[: len(data) // itemsize * itemsize], dtype)
    message = arrays_pb2.Array.FromString(pack(array).SerializeToString())
    result = unpack(message, dtype, count=len(array))
    assert result.dtype == np.dtype(dtype)
    assert result.tobytes() == array.tobytes()
    assert not result.flags.writeable


def test_every_type_of_the_schema_crosses() -> None:
    named = {f"DTYPE_{name.upper()}" for name in DTYPES}
    assert {*named, "DTYPE_UNSPECIFIED"} == set(arrays_pb2.DType.keys())


def test_bytes_are_little_endian_whatever_the_array_is() -> None:
    big = np.array([1, 258], dtype=">u2")
    message = pack(big)
    assert message.data == b"\x01\x00\x02\x01"
    np.testing.assert_array_equal(unpack(message), [1, 258])
    np.testing.assert_array_equal(unpack(pack(np.arange(10)[::3])), [0, 3, 6, 9])


def test_a_cast_rounds_floats_and_never_changes_integers() -> None:
    assert pack([0.1], np.float32).dtype == arrays_pb2.DTYPE_FLOAT32
    assert unpack(pack([1, 2], np.uint8)).dtype == np.uint8
    with pytest.raises(ValueError, match="expected values that fit uint8, got values from 1 to 256"):
        pack([1, 256], np.uint8)
    with pytest.raises(ValueError, match="expected values that fit uint64, got values from -1 to 3"):
        pack(np.array([3, -1]), np.uint64)
    with pytest.raises(ValueError, match="expected values that fit int64"):
        pack(np.array([2**63], dtype=np.uint64), np.int64)
    with pytest.raises(ValueError, match="can be cast to uint8, got float64"):
        pack([1.0], np.uint8)
    assert unpack(pack(np.empty(0, dtype=np.int64), np.uint8)).shape == (0,)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2)), r"one dimension, got shape \(2, 2\)"),
        (np.float64(3.0), r"one dimension, got shape \(\)"),
        (np.zeros(2, dtype=np.float16), "expected one of uint8, .*, got float16"),
        (np.zeros(2, dtype=np.bool_), "got bool"),
        (["a"], "got str"),
    ],
)
def test_what_the_wire_does_not_carry_is_refused(array: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(array)


@pytest.mark.parametrize(
    ("message", "refusal"),
    [
        (arrays_pb2.Array(), "loss: expected float32 or float64, got dtype number 0"),
        (arrays_pb2.Array(dtype=99, count=0), "loss: expected float32 or float64, got dtype number 99"),  # type: ignore[arg-type]
        (pack(np.zeros(3, dtype=np.uint8)), "loss: expected float32 or float64, got uint8"),
        (
            arrays_pb2.Array(dtype=arrays_pb2.DTYPE_FLOAT32, count=3, data=b"1234"),
            "loss: expected 12 bytes for 3 of float32, got 4",
        ),
        (
            arrays_pb2.Array(dtype=arrays_pb2.DTYPE_FLOAT32, count=2**64 - 1, data=b"1234"),
            "loss: expected 73786976294838206460 bytes",
        ),
        (pack(np.zeros(2)), "loss: expected 3 values, got 2"),
    ],
)
def test_a_message_that_does_not_add_up_is_refused(message: arrays_pb2.Array, refusal: str) -> None:
    with pytest.raises(ValueError, match=refusal):
        unpack(message, np.float32, np.float64, count=3, name="loss")


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (0, "uint8"),
        (1, "uint8"),
        (256, "uint8"),
        (257, "uint16"),
        (2**16, "uint16"),
        (2**16 + 1, "uint32"),
        (2**32, "uint32"),
        (2**32 + 1, "uint64"),
        (2**63, "uint64"),
    ],
)
def test_ids_travel_as_the_smallest_type_that_holds_all_of_them(size: int, name: str) -> None:
    assert smallest_uint(size) == np.dtype(name)
    if size:
        ids = np.array([0, size - 1], dtype=np.int64)
        message = pack_ids(ids, size)
        assert unpack(message).dtype == np.dtype(name)
        result = unpack_ids(message, size=size, count=2)
        assert result.dtype == np.int64
        np.testing.assert_array_equal(result, ids)


@pytest.mark.parametrize("size", [-1, 2**63 + 1])
def test_a_dataset_that_int64_cannot_number_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"from 0 to 2\*\*63, got {size}"):
        smallest_uint(size)


def test_ids_out_of_range_are_named_with_their_place() -> None:
    with pytest.raises(ValueError, match="ids: expected ids from 0 to 299, got 300 at position 1"):
        pack_ids([5, 300], 300)
    with pytest.raises(ValueError, match="ids: expected ids from 0 to 299, got -1 at position 0"):
        pack_ids([-1, 5], 300)
    with pytest.raises(ValueError, match="retired: expected ids from 0 to 9, got 12 at position 2"):
        unpack_ids(pack(np.array([1, 2, 12])), size=10, name="retired")
    with pytest.raises(ValueError, match="got 18446744073709551615 at position 0"):
        unpack_ids(pack(np.array([2**64 - 1], dtype=np.uint64)))
    with pytest.raises(ValueError, match="expected integers in one dimension, got float64"):
        pack_ids([1.0], 10)
    with pytest.raises(ValueError, match="got float32"):
        unpack_ids(pack([1.0], np.float32))
    assert unpack_ids(pack_ids([], 10), size=10).shape == (0,)


def test_the_digest_is_that_of_the_step_and_all_ids() -> None:
    step, ids = 258, [1, 2**40, 7]
    expected = b"".join(number.to_bytes(8, "little") for number in (step, *ids))
    digest = hashlib.blake2b(expected, digest_size=8).digest()
    assert batch_digest(step, ids) == int.from_bytes(digest, "little")
    assert batch_digest(step, np.array(ids, dtype=np.uint64)) == batch_digest(step, ids)
    # Pinned: journals hold digests, so the rule may never change.
    assert batch_digest(3, [1, 2]) == 6812078412924547582
    assert len({batch_digest(3, [1, 2]), batch_digest(3, [2, 1]), batch_digest(4, [1, 2])}) == 3
