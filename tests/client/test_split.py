"""The split rule is that of numpy.array_split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.split import sizes, split


@given(batch_size=st.integers(0, 300), world_size=st.integers(1, 40))
def test_slices_are_those_of_array_split(batch_size: int, world_size: int) -> None:
    slices = np.array_split(np.arange(batch_size), world_size)
    assert sizes(batch_size, world_size) == [len(one) for one in slices]
    for rank, expected in enumerate(slices):
        offset, count = split(batch_size, world_size, rank)
        np.testing.assert_array_equal(np.arange(offset, offset + count), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 2, 0), "batch size of at least 0, got -1"),
        ((8, 0, 0), "world size of at least 1, got 0"),
        ((8, 2, 2), r"rank from 0 to 1 \(world size 2\), got 2"),
        ((8, 2, -1), "rank from 0 to 1 .* got -1"),
    ],
)
def test_an_impossible_split_is_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(*arguments)
