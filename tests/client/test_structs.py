"""Policies cross the wire as Struct and come back equal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import InvalidArgument
from steelyard.structs import from_struct, to_struct

NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.none() | st.booleans() | st.text(max_size=5) | NUMBERS
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_what_goes_in_comes_out(values):
    assert from_struct(to_struct(values, "draw")) == values


def test_whole_numbers_come_back_as_ints():
    back = from_struct(to_struct({"steps": 3, "alpha": 2.0, "r": 0.4}, "draw"))
    assert [type(back[name]) for name in ("steps", "alpha", "r")] == [int, int, float]


def test_numpy_values_and_tuples_are_accepted():
    given = {"a": np.float32(0.5), "b": np.int64(3), "c": (1, (2, 3)), "d": np.arange(3), "e": np.bool_(True)}
    assert from_struct(to_struct(given, "draw")) == {
        "a": 0.5,
        "b": 3,
        "c": [1, [2, 3]],
        "d": [0, 1, 2],
        "e": True,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": float("nan")}, "draw.a: expected a finite number, got nan"),
        ({"a": {"b": [1, float("inf")]}}, r"draw.a.b\[1\]: expected a finite number, got inf"),
        ({"a": np.float32("nan")}, "draw.a: expected a finite number, got nan"),
        ({"a": 2**53 + 1}, "draw.a: expected an integer that a double holds exactly"),
        ({"a": {1: 2}}, "draw.a: expected keys that are strings, got 1"),
        ({"a": object}, "draw.a: expected a number, string"),
        ("shuffle", "draw: expected a mapping"),
        (None, "draw: expected a mapping"),
    ],
)
def test_what_a_struct_cannot_hold_is_refused_with_its_place(values, message):
    with pytest.raises(InvalidArgument, match=message):
        to_struct(values, "draw")
